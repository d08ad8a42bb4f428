"""Progress on one line of stderr, with the time left."""

from __future__ import annotations

import sys
import time


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class Progress:
    """Counts units of work. A terminal sees one line rewritten, a log file a line every `every` seconds."""

    def __init__(self, label: str, total: int, done: int = 0, every: float = 15.0):
        self.label, self.total, self.done = label, total, done
        self._start, self._first, self._last = time.monotonic(), done, time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every

    def update(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self._last < self._every and self.done < self.total:
            return
        self._last = now
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        line = f"{self.label}: {self.done}/{self.total}, {left} left{f', {note}' if note else ''}"
        end = "" if self._terminal and self.done < self.total else "\n"
        print(f"\r\033[K{line}" if self._terminal else line, end=end, file=sys.stderr, flush=True)
