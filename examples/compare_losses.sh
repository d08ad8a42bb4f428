#!/usr/bin/env bash
# Which loss should a value model be trained with? Trains the demo value model with each loss named, on the same
# rollouts, and steers with each: held-out R², rank and pairwise accuracy, spread of V among the candidates, and the
# reward that a KL buys. Run `sia-convert make models/demo.toml models/shipped-base.toml` first; what is finished is not
# done again.
#     PATH=.venv/bin:$PATH examples/compare_losses.sh per-token trajectory-mean td-lambda
set -euo pipefail
cd "$(dirname "$0")/.."
source examples/value_model.sh
for loss in "${@:-per-token}"; do
    value_model "$work/losses/$loss" "$loss" $work/scored.jsonl
    frontier "$work/losses/$loss"
done
