"""What /learn starts: `sia-local learn` in a process of its own, behind the chat, and what is known of it here."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import SiaError
from ..files import cache_root

TEXTS = 96
PATIENCE = 20.0  # seconds for a process that was told to end: it finishes a token and writes down what it has
PROGRAM = (sys.executable, "-m", "sia_local")


def place_for(base: Path, words: str, loading: Sequence[str]) -> Path:
    """Where what is learned of an instruction for a base is kept: the same for the same, so that it goes on. The base
    is known by its path, size and time; loading: how it is loaded, which `learn` does not mix."""
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40].strip("-")
    file = base.stat()
    known = json.dumps([str(base.resolve()), file.st_size, file.st_mtime_ns, words, *loading])
    mark = hashlib.sha256(known.encode()).hexdigest()[:8]
    return cache_root() / "learned" / f"{slug or 'words'}-{mark}.gguf"


class Learner:
    """A process that learns `words`, an instruction; out: its steering file, beside which lies its log.

    loading: the options of `learn` that say which base is loaded and how. start() may be called again, for more texts:
    those that are there are kept.
    """

    def __init__(self, words: str, out: Path, loading: Sequence[str], program: Sequence[str] = PROGRAM):
        self.words, self.out, self.log = words, out, Path(f"{out}.log")
        self.kept = False
        self._options = [*loading, "--out", str(out)]
        self._program = list(program)
        self._process: subprocess.Popen[bytes] | None = None
        self._told = ""

    @property
    def command(self) -> str:
        """What goes on with it in a terminal."""
        return shlex.join(["sia-local", *self._command()])

    def _command(self, given: Sequence[str] = ()) -> list[str]:
        # Words may begin with a dash.
        return ["learn", *self._options, *given, "--", self.words]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def learned(self) -> bool:
        """Whether it came to its end with a file."""
        return self._process is not None and self._process.poll() == 0

    def start(self, texts: int) -> None:
        """Raises SiaError where no process or file can be made."""
        given = ["--texts", str(texts), "--threads", "1", "--behind"]
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as log:
                # Of the chat's own session, in which its low priority counts.
                command = [*self._program, *self._command(given)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        except OSError as error:
            raise SiaError(f"learning cannot be started ({error}); in another terminal: {self.command}") from None
        self._told, self.kept = self.status(), False

    def status(self) -> str:
        """Where it stands."""
        lines = self._lines()
        last = lines[-1] if lines else ""
        if self.running:
            return f"learning: {last}" if last else "learning: loading the base"
        if self.learned:
            at = max((i for i, line in enumerate(lines) if line.startswith(f"{self.out}: ")), default=0)
            return "\n".join(["learned:", *lines[at:]])
        return f"learning ended: {last or 'it said nothing'}"

    def news(self) -> str | None:
        """status(), where it is another than when it was told last."""
        if self._process is None or (now := self.status()) == self._told:
            return None
        self._told = now
        return now

    def keep(self) -> None:
        """Lets it go on when the chat is over."""
        self._close(b"keep\n")
        self.kept = True

    def stop(self) -> None:
        """Ends it; what it has collected stays."""
        if self._process is None:
            return
        if self.kept:
            self._process.terminate()
        self._close(b"")
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close(self, word: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        if not self._process.stdin.closed:
            with suppress(OSError), self._process.stdin as pipe:
                pipe.write(word)

    def _lines(self) -> list[str]:
        try:
            said = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in said.splitlines() if line.strip()]
