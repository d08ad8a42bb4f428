"""How well a long chat keeps to a wish: reading ease turn by turn, by four ways to ask for plain words.

python examples/long_chat.py [CHATS] [TURNS]     # SmolLM2 once it is fetched (`sia-local fetch smollm2`)

One chat after the other, each on the same questions, so that the ways are compared pair by pair.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sia_local import SIA, Guides, Setup, SiaConfig, load_reward
from sia_local.chat.session import Session
from sia_local.prompts import read_prompts
from sia_local.records import Request
from sia_local.shipped import SMOLLM2

CHATS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
TURNS = int(sys.argv[2]) if len(sys.argv) > 2 else 6
SETUP = Setup(n_ctx=1024, n_threads=1)
PLUS, MINUS = "Answer in very simple words.", "Answer in academic language."
HERE = Path(__file__).parent
questions = read_prompts(HERE / "smollm2-prompts.txt")[: CHATS * TURNS]
base, known = SMOLLM2.base(), SMOLLM2.value("words")
assert known is not None
words = known.path
reward = load_reward("plain")
pair = Guides(base, base, plus_prompt=f"{PLUS} {{prompt}}", minus_prompt=f"{MINUS} {{prompt}}")
gain = SiaConfig(gate="gain", rate=0.3, beta=0.5, beta_unit="spread")
rate = SiaConfig(gate="rate", rate=0.3, beta=1.0)

ways: dict[str, tuple[Callable[[], SIA], SiaConfig, str | None]] = {
    "the base alone": (lambda: SIA.load(base, None, SETUP), SiaConfig(gate="off"), None),
    "sentence in the system prompt": (lambda: SIA.load(base, None, SETUP), SiaConfig(gate="off"), PLUS),
    "the two sentences as guides": (lambda: SIA.load(base, pair, SETUP), rate, None),
    "a file learned from them": (lambda: SIA.load(base, words, SETUP), gain, None),
}
print(f"{CHATS} chats of {TURNS} turns, reward plain; KL of steering in nats a turn\n")
print(f"{'':32}" + "".join(f"  turn {i + 1:<5}" for i in range(TURNS)) + "  all                KL")
start: np.ndarray | None = None
for name, (load, config, system) in ways.items():
    rewards, kl = np.empty((CHATS, TURNS)), 0.0
    with load() as sia:
        for chat in range(CHATS):
            session = Session(sia, Request("", config, max_tokens=64, seed=100 * chat), system)
            for turn in range(TURNS):
                question = questions[chat * TURNS + turn]
                for _ in session.ask(question):
                    pass
                assert session.written is not None
                rewards[chat, turn] = reward([question], [session.written.text])[0]
            kl += session.totals.kl_steering
    start = rewards if start is None else start
    more = (rewards - start).mean(axis=1)
    half = 1.96 * more.std(ddof=1) / CHATS**0.5 if CHATS > 1 else float("nan")
    row = "".join(f"  {mean:<10.3f}" for mean in rewards.mean(axis=0))
    print(f"{name:32}{row}  {more.mean():+.3f} ± {half:.3f}  {kl / CHATS / TURNS:8.2f}", flush=True)
