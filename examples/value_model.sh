# Sourced by compare_losses.sh and compare_rollouts.sh: one value model as the demo's is made, and what it buys.
work=build/value base=models/demo-base.gguf

value_model() { # OUT LOSS DATA...: the folder OUT and OUT.gguf
    local out=$1 loss=$2
    shift 2
    sia-convert train $work/demo-base-hf "$@" --out "$out" --loss "$loss" --reward-name vader --base-name demo-base \
        --lora-targets all-linear --epochs 2 --batch 32 --lr 1e-3 --schedule linear --warmup 20 --bf16 --threads 2
    sia-convert spread "$out" $work/unseen.jsonl --base $base
    sia-convert export "$out" "$out-F32.gguf" --layout merged --dtype f32 --base $base
    sia-convert quantize "$out-F32.gguf" "$out.gguf" Q8_0
}

frontier() { # OUT: reward and judge at several KLs, in OUT-eval
    sia-local eval -m $base -v "$1.gguf" --arms off,sparse,dense --rates 0.2 --betas 0.5,1,2 --out "$1-eval"
}
