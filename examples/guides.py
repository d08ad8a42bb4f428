"""Steering without a value model: one model under two instructions, V = log p(with the wish) - log p(without it).

Any two GGUFs of the base's vocabulary can take these parts, for instance a small instruct model and its own base
model: Guides("instruct-0.6b.gguf", "base-0.6b.gguf").
"""

import os
import re
from pathlib import Path

from sia_local import SIA, SiaConfig
from sia_local.values.sources import Guides

MODELS = Path(os.environ.get("SIA_MODELS", Path(__file__).parent.parent / "models"))
PROMPT = "Tell me a story about a tall snail."
TEXTS = 24

base = MODELS / "demo-base.gguf"
guides = Guides(base, base, plus_prompt="{prompt} Tell me a story about a ship at sea.", minus_prompt="{prompt}")
with SIA.load(base, guides, n_ctx=256, slots=TEXTS) as sia:
    for beta in (0.0, 2.0, 4.0):
        config = SiaConfig(gate="rate", rate=0.3, beta=beta)
        texts = list(sia.complete(sia.job(PROMPT, config, max_tokens=100, seed=i, id=i) for i in range(TEXTS)))
        words = sum(len(re.findall(r"\b(?:sea|ship|boat|sail|water|island|fish|wave|ocean)", t.text)) for t in texts)
        steering = max(0.0, sum(t.kl - t.kl_truncation for t in texts) / TEXTS)
        print(f"beta {beta:g}: {words / TEXTS:.2f} words of the sea, KL of steering {steering:.2f} nats a text")
print(f"\n{max(texts, key=lambda t: t.text.count('sea')).text}")
