#!/bin/bash
# What preferences move on a base that hardly refuses: the tables of docs/results.md under "Refusals".
# safety.sh PAIRS.jsonl.gz ADVBENCH.csv XSTEST.csv: HH-RLHF's harmless pairs and two sets of prompts, as they are published.
set -euo pipefail
pairs=$(realpath "$1") advbench=$(realpath "$2") xstest=$(realpath "$3")
cd "$(dirname "$0")/.."
work=build/safety base=~/.cache/sia_local/models/SmolLM2-135M-Instruct.Q4_1.gguf
mkdir -p $work
ln -sfn "$pairs" $work/pairs.jsonl.gz
ln -sfn "$xstest" $work/xstest.csv
sia-local fetch smollm2
[ -d $work/backbone ] || sia-convert gguf-to-hf "$base" $work/backbone
[ -d $work/reward-model ] || sia-convert reward-model $work/backbone "$pairs" --out $work/reward-model --max-length 256 --threads 2
sia-convert make examples/harmless.toml
arms=(-m smollm2 --ctx 384 --slots 8 --max-tokens 64 --limit 100 --arms off,sparse --rates 0.2 --betas 2 --reward refusal)
sia-local eval "${arms[@]}" -v plain --prompts "$advbench" --out $work/plain-advbench
sia-local eval "${arms[@]}" -v plain --prompts "$xstest" --out $work/plain-xstest
arms+=(-v $work/harmless.gguf --judge hf:$work/reward-model)
sia-local eval "${arms[@]}" --prompts "$advbench" --out $work/advbench
sia-local eval "${arms[@]}" --prompts "$xstest" --out $work/xstest
