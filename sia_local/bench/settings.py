"""What a benchmark measures, checked on construction. Free of llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import Setup, setting
from ..errors import ConfigError


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    prompts, tokens, depths: token counts as llama-bench's -p, -n and -d (0 leaves a test out). rates: shares of
    junctions. sequences: how many texts at once. k: candidates (none: 10, and 4 for a head); min_share and
    row_group as in SiaConfig. repetitions: runs of every arm after one warm-up. setup: how models are loaded; its
    context is as long as the tests ask. floors: in how many repetitions the floor is measured. traces: a folder for
    what every arm asks of llama.cpp, for examples/floor.c.
    """

    model: Path
    values: tuple[Path, ...] = setting((), cli=False)
    prompts: tuple[int, ...] = setting((0,), "Prompt tokens to read; 0 for none.", option="-p")
    tokens: tuple[int, ...] = setting((64,), "Tokens to generate.", option="-n")
    depths: tuple[int, ...] = setting((64,), "Tokens read before them.", option="-d")
    rates: tuple[float, ...] = setting((0.2,), "Steered shares.", option="--rate")
    sequences: tuple[int, ...] = setting((1,), "Texts at once.", option=("-s", "--sequences"))
    k: tuple[int, ...] = setting(
        (), "Candidates at a junction.", option=("-k", "--candidates"), show="10; 4 for a head"
    )
    min_share: float = setting(0.0, "Score only candidates this likely, relative to the best.")
    row_group: int = setting(1, "Fill scored candidates up to a multiple of this.")
    repetitions: int = setting(5, "Repetitions, after one warm-up.", option="-r")
    dense: bool = setting(True, "Also measure steering at every token.")
    setup: Setup = field(default_factory=Setup)
    traces: Path | None = setting(None, "Folder for the calls of every arm (examples/floor.c).")
    floors: int = setting(2, cli=False)
    seed: int = setting(0, cli=False)

    def __post_init__(self) -> None:
        for name, least in (("prompts", 0), ("tokens", 0), ("depths", 0), ("sequences", 1)):
            if any(n < least for n in getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected numbers of at least {least}")
        if not any((*self.prompts, *self.tokens)):
            raise ConfigError("neither prompt tokens (-p) nor generated tokens (-n) are asked for; give one of them")
        if any(not 0 <= rate <= 1 for rate in self.rates):
            raise ConfigError(f"rates are {self.rates}; expected shares from 0 to 1, such as 0.2")
        if self.repetitions < 1:
            raise ConfigError(f"repetitions is {self.repetitions}; expected at least 1")
        if any(not 2 <= k <= 255 for k in self.k):
            raise ConfigError(f"k is {self.k}; expected 2 to 255 candidates")
        longest = [*self.prompts, *(max(1, d) + n for d in self.depths for n in self.tokens)]
        object.__setattr__(self, "setup", replace(self.setup, n_ctx=max(longest) + 64))

    @property
    def threads(self) -> int:
        from ..llama.library import default_threads

        return self.setup.n_threads or default_threads()
