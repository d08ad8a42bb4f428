"""Steering, Best-of-N, and both: what each does to one request.

A judge that the value model never saw (models/polarity-judge.npz, happy or sad words) scores every text.
"""

import os
from pathlib import Path

from sia_local import SIA, SiaConfig
from sia_local.best_of import best_of
from sia_local.rewards import load_reward

MODELS = Path(os.environ.get("SIA_MODELS", Path(__file__).parent.parent / "models"))
PROMPT = "Tell a short story about a proud butterfly who likes to sing."
N = 8

judge = load_reward("polarity")
arms = {"off": SiaConfig(gate="off"), "sparse": SiaConfig(gate="rate", rate=0.2, beta=2.0, beta_unit="spread")}
with SIA.load(MODELS / "demo-base.gguf", MODELS / "demo-value.gguf", slots=N, n_ctx=256) as sia:
    for name, config in arms.items():
        # The N texts run side by side and share the prompt's part of the KV cache.
        result = best_of(sia, PROMPT, config, n=N, by="value", max_tokens=120, seed=1)
        scores = judge([PROMPT] * N, [c.text for c in result.contenders])
        print(f"{name:6}  one text   {sum(scores) / N:+.3f}   KL of steering {result.kl_steering:.2f} nats")
        bound = f"of steering {result.kl_steering:.2f} + at most {result.kl_bound:.2f} nats for choosing"
        print(f"{name:6}  best of {N}  {scores[result.best]:+.3f}   KL {bound}")
print(f"\n{result.winner.text}")
