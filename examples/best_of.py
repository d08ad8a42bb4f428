"""Steering, Best-of-N, and both: what each does to ten requests.

The value model chooses; a judge that it never saw (models/polarity-judge.npz, happy or sad words) scores the texts.
"""

import os
from pathlib import Path

from sia_local import SIA, SiaConfig
from sia_local.generation.best_of import best_of
from sia_local.rewards.load import load_reward

HERE = Path(__file__).parent
MODELS = Path(os.environ.get("SIA_MODELS", HERE.parent / "models"))
PROMPTS = (HERE / "prompts.txt").read_text().splitlines()[:10]
N = 8

judge = load_reward("polarity")
arms = {"off": SiaConfig(gate="off"), "sparse": SiaConfig(gate="rate", rate=0.2, beta=1.0, beta_unit="spread")}
with SIA.load(MODELS / "demo-base.gguf", MODELS / "demo-value.gguf", slots=N, n_ctx=256) as sia:
    for name, config in arms.items():
        one, best, steering = [], [], []
        for prompt in PROMPTS:
            # The N texts run side by side and share the prompt's part of the KV cache.
            result = best_of(sia, prompt, config, n=N, by="value", max_tokens=100, seed=1)
            scores = judge([prompt] * N, [c.text for c in result.contenders])
            one.append(sum(scores) / N)
            best.append(scores[result.best])
            steering.append(result.kl_steering)
        spent = sum(steering) / len(steering)
        print(f"{name:6}  one text   {sum(one) / len(one):+.3f}   KL {spent:.2f} nats")
        bound = f"{spent:.2f} for steering + at most {result.kl_bound:.2f} nats for choosing"
        print(f"{name:6}  best of {N}  {sum(best) / len(best):+.3f}   KL {bound}")
print(f"\n{result.winner.text}")
