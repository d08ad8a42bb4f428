#!/usr/bin/env bash
# Which loss should a value model be trained with? Trains the demo value model with each loss named, on the same
# rollouts, and steers with each: held-out R², rank and pairwise accuracy, spread of V among the candidates, and the
# reward that a KL buys. Run `sia-convert make models/demo.toml` first; what is finished is not done again.
#     PATH=.venv/bin:$PATH examples/compare_losses.sh per-token trajectory-mean td-lambda
set -euo pipefail
cd "$(dirname "$0")/.."
work=build/demo base=models/demo-base.gguf
for loss in "${@:-per-token}"; do
    out=$work/losses/$loss
    sia-convert train build/base-hf $work/scored.jsonl --out "$out" --loss "$loss" --reward-name vader \
        --base-name demo-base --lora-targets all-linear --epochs 2 --batch 32 --lr 1e-3 --schedule linear --warmup 20 \
        --bf16 --threads 2
    sia-convert spread "$out" $work/unseen.jsonl --base $base
    sia-convert export "$out" "$out-F32.gguf" --layout merged --dtype f32 --base $base
    sia-convert quantize "$out-F32.gguf" "$out.gguf" Q8_0
    sia-local eval -m $base -v "$out.gguf" --arms off,sparse,dense --rates 0.2 --betas 0.25,0.5,1,2 --limit 120 \
        --out "$work/losses/eval-$loss"
done
