"""Steering without a value model: the same model under two instructions, V = log p(happy) - log p(sad).

Any two GGUFs of the base's vocabulary can take these parts, for instance a small instruct model and its own base
model: Guides("instruct-0.6b.gguf", "base-0.6b.gguf").
"""

import os
from pathlib import Path

from sia_local import SIA, SiaConfig
from sia_local.rewards import load_reward
from sia_local.sources import Guides

MODELS = Path(os.environ.get("SIA_MODELS", Path(__file__).parent.parent / "models"))
PROMPT = "Tell a short story about a proud butterfly who likes to sing."

base = MODELS / "demo-base.gguf"
guides = Guides(
    base,
    base,
    plus_prompt="{prompt} It is a happy story with a happy ending.",
    minus_prompt="{prompt} It is a sad story with a sad ending.",
)
judge = load_reward("polarity")
with SIA.load(base, guides, n_ctx=256, slots=8) as sia:
    for beta in (0.0, 1.0, 2.0):
        config = SiaConfig(gate="rate", rate=0.3, beta=beta)
        texts = list(sia.complete(sia.job(PROMPT, config, max_tokens=120, seed=i, id=i) for i in range(8)))
        score = sum(judge([PROMPT] * 8, [t.text for t in texts])) / 8
        steering = sum(t.kl - t.kl_truncation for t in texts) / 8
        print(f"beta {beta:g}: polarity {score:+.3f}, KL of steering {steering:.2f} nats a text")
print(f"\n{texts[0].text}")
