"""Two objectives with weights that change at run time: a value model, and the wording of a guide.

In a chat the same is `-v demo-value.gguf:1 --guide-plus ...` and then `/beta demo-value 0.2`.
"""

import os
from pathlib import Path

from sia_local import SIA, Guides, SiaConfig, ValuePath
from sia_local.values.sources import MixedValues, Spec

MODELS = Path(os.environ.get("SIA_MODELS", Path(__file__).parent.parent / "models"))
PROMPT = "Tell me a story about a tall snail."

base = MODELS / "demo-base.gguf"
wish = "{prompt} Tell me a story about a ship at sea."
sources: list[Spec] = [
    ValuePath(MODELS / "demo-value.gguf", weight=1.0, name="happy"),
    Guides(base, base, weight=1.0, name="sea", plus_prompt=wish, minus_prompt="{prompt}", spread=0.5),
]
with SIA.load(base, sources, n_ctx=256) as sia:
    assert isinstance(sia.value, MixedValues)
    # Every V is divided by its own spread (a value model's is stored with it, guides are told theirs), so that a
    # weight means the same for each; a weight of 0 costs nothing.
    for happy, sea in ((0, 0), (2, 0), (0, 2), (1, 1)):
        sia.value.set_weight("happy", happy)
        sia.value.set_weight("sea", sea)
        config = SiaConfig(gate="rate", rate=0.3)
        made = sia.generate(PROMPT, config, max_tokens=100, seed=3)
        text = "".join(step.text for step in made)
        print(f"--- {sia.value.name}: KL of steering {made.stats.kl_steering:.2f} nats\n{text}\n")
