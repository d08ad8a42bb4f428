"""How far steering may go, in nats: beta is lowered at each junction so that the budget holds."""

import os
from pathlib import Path

from sia_local import SIA, SiaConfig
from sia_local.rewards.load import load_reward

MODELS = Path(os.environ.get("SIA_MODELS", Path(__file__).parent.parent / "models"))
PROMPT = "Write a short fable about a quiet bear in a small town."
TEXTS = 8

judge = load_reward("polarity")
with SIA.load(MODELS / "demo-base.gguf", MODELS / "demo-value.gguf", slots=TEXTS, n_ctx=256) as sia:
    print("budget   spent: mean, most   polarity")
    for budget in (0.0, 1.0, 4.0, 16.0, None):
        config = SiaConfig(gate="rate", rate=0.3, beta=4.0, beta_unit="spread", kl_total=budget)
        spent, texts = [0.0] * TEXTS, [""] * TEXTS
        for step in sia.run(sia.job(PROMPT, config, max_tokens=120, seed=i, id=i) for i in range(TEXTS)):
            spent[step.job] += step.kl_steering
            texts[step.job] += step.text
        name = "none" if budget is None else f"{budget:g}"
        score = sum(judge([PROMPT] * TEXTS, texts)) / TEXTS
        print(f"{name:>6}   {sum(spent) / TEXTS:11.2f} {max(spent):6.2f}   {score:+.3f}")
