#!/usr/bin/env bash
# What should a value model learn from? Five texts of the base to a prompt, ten, or five of the base and five of the base
# as the first value model steers it: trains with each, and steers with each. Run
# `sia-convert make models/demo.toml models/shipped-base.toml` first; what is finished is not done again.
#     PATH=.venv/bin:$PATH examples/compare_rollouts.sh td-lambda
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/value_model.sh
loss=${1:-td-lambda} out=$work/rollouts-$loss
mkdir -p "$out"

sample() { # NAME OPTIONS...: scored trajectories in OUT/NAME.jsonl
    local name=$1
    shift
    sia-convert rollouts models/prompts-train.txt "$out/$name-texts.jsonl" --base $base --max-tokens 128 --slots 8 \
        --ctx 256 --threads 2 "$@"
    sia-convert score "$out/$name-texts.jsonl" "$out/$name.jsonl" --reward vader
}

sample ten --samples 10
grep -E '"id": "[0-9]+-[0-4]"' "$out/ten.jsonl" > "$out/five.jsonl"
value_model "$out/five-model" "$loss" "$out/five.jsonl"
sample steered --samples 5 --seed 1 --value "$out/five-model.gguf" --gate rate --rate 0.2 --beta 2 --beta-unit spread
value_model "$out/both-model" "$loss" "$out/five.jsonl" "$out/steered.jsonl"
value_model "$out/ten-model" "$loss" "$out/ten.jsonl"
for name in five both ten; do frontier "$out/$name-model"; done
