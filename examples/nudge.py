"""Nudging: a base that knows no chat goes on with plain text; where it is unsure, an instruct model says a word.

The demo model plays both parts here: as a base it gets the request as plain text, as the nudging model in its chat
template. Usually they are two files, which may have different vocabularies: a large base, a small instruct model.
"""

import os
from pathlib import Path

from sia_local import SiaConfig
from sia_local.generation.nudge import Nudged

MODELS = Path(os.environ.get("SIA_MODELS", Path(__file__).parent.parent / "models"))
PROMPT = "Tell a short story about a hungry owl and a flower."

base = MODELS / "demo-base.gguf"
with Nudged.load(base, base, threshold=0.4, n_ctx=512) as nudged:
    plain = nudged.prompt(PROMPT, raw=True)
    for threshold in (0.0, 0.3, 0.6):
        nudged.threshold = threshold
        print(f"--- nudges where the base's best token has less than {threshold:g}; nudged words in [brackets]")
        made = nudged.generate(plain, SiaConfig().with_sampling(temperature=0.7), max_tokens=100, seed=2)
        for step in made:
            space = step.text[: len(step.text) - len(step.text.lstrip())]
            print(f"{space}[{step.text.strip()}]" if step.steered else step.text, end="")
        words, tokens = made.stats.junctions, made.stats.tokens
        print(f"\n({words} words of the small model among {tokens} tokens)\n")
