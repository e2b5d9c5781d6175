#!/usr/bin/env bash
# Runs lm-eval's benchmarks on an engine and ends in a verdict, with every answer kept.
set -euo pipefail

usage() {
    cat <<'END'
usage: tools/run_lm_eval.sh [options]

  --model ID|FOLDER|RECIPE   checkpoint (inclusionAI/LLaDA2.0-mini)
  --tasks T,T                mmlu, hellaswag, arc_easy, arc_challenge, gsm8k, gsm8k_cot
                             (mmlu,hellaswag,arc_easy; for LLaDA2 gsm8k_cot, since a block-diffusion
                             model gives no log-likelihood of a continuation)
  --engine NAME              hf, vllm, sglang (hf)
  --device NAME              auto, cpu, cuda (auto)
  --dtype NAME               float32, bfloat16, float16 (bfloat16)
  --samples N                questions a task, drawn with seed 0 (500)
  --threshold SHARE          lowest acceptable score (0.0: only measure)
  --baseline FILE            hold every answer against those that an earlier run has kept
  --tolerance SHARE          a drop that does not matter
  --keep FILE                keep the spec that is run

The answers are left under .specrunner/benchmarks. The exit status is that of `specrunner run`.

  tools/run_lm_eval.sh --model smollm2-135m --samples 100 --threshold 0.3
END
}

model=inclusionAI/LLaDA2.0-mini tasks= engine=hf device=auto dtype=bfloat16 samples=500
threshold=0.0 baseline= tolerance= keep=
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --model | --tasks | --engine | --device | --dtype | --samples | --threshold | --baseline | --tolerance | --keep)
        [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2 && exit 4; }
        printf -v "${1#--}" %s "$2" && shift 2
        ;;
    *) echo "error: no option $1" >&2 && usage >&2 && exit 4 ;;
    esac
done

decode=
case $model in
*[Ll][Ll][Aa][Dd][Aa]2*)
    tasks=${tasks:-gsm8k_cot}
    decode="    decode: {algorithm: low_confidence, block_length: 32, threshold: 0.95}"
    ;;
esac
tasks=${tasks:-mmlu,hellaswag,arc_easy}
if [ -d "$model" ]; then
    source="{path: \"$(cd "$model" && pwd)\", trust_remote_code: true}"
elif [[ $model == */* ]]; then
    source="{id: \"$model\", trust_remote_code: true}"
else
    source="{recipe: \"$model\"}"
fi
if [ -n "$baseline" ]; then
    judged="baseline: {file: \"$(cd "$(dirname "$baseline")" && pwd)/$(basename "$baseline")\"}"
    compare="mode: paired"
else
    judged="threshold: $threshold"
    compare="mode: absolute"
fi
[ -z "$tolerance" ] || compare="$compare, tolerance: $tolerance"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
spec=${keep:-$scratch/lm-eval.yaml}
cat >"$spec" <<END
version: 1
model: $source
engines: [$engine]
device: $device
dtype: $dtype
timeout: 3600
cases:
  - name: lm-eval
$decode
    benchmark:
      task: [${tasks//,/, }]
      samples: $samples
      $judged
      compare: {$compare}
END
if command -v specrunner >/dev/null; then
    specrunner run "$spec"
else
    python3 -m specrunner run "$spec"
fi
