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
    """Counts items. A terminal sees one line rewritten, a log file a line every `every` seconds.

    The pace is measured from the first report on, so that loading and warming up do not count. Where many items are
    worked on at once, `work` counts their parts as they come (tokens of texts) and `update` says how many parts an
    item had: the first texts of sixteen that grow together come late, which says nothing about the pace.
    """

    def __init__(self, label: str, total: int, done: int = 0, every: float = 15.0):
        self.label, self.total, self.done = label, total, done
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._last = time.monotonic()
        self._began: float | None = None  # when the first report came, which is not counted
        self._parts = self._items = self._item_parts = 0.0

    def work(self, parts: float = 1) -> None:
        """Parts of items that are not done yet."""
        if self._began is None:
            self._began = time.monotonic()
        else:
            self._parts += parts

    def skip(self, count: int = 1) -> None:
        """Items that took no time."""
        self.done += count

    def update(self, count: int = 1, note: str = "", work: float | None = None) -> None:
        """`count` items are done; `work`: how many parts, reported before, they had."""
        self.done += count
        if work is None:
            self.work(count)
        self._items, self._item_parts = self._items + count, self._item_parts + (count if work is None else work)
        now = time.monotonic()
        if now - self._last < self._every and self.done < self.total:
            return
        self._last = now
        left = self.left(now)
        line = f"{self.label}: {self.done}/{self.total}, {'?' if left is None else duration(left)} left"
        line += f", {note}" if note else ""
        end = "" if self._terminal and self.done < self.total else "\n"
        print(f"\r\033[K{line}" if self._terminal else line, end=end, file=sys.stderr, flush=True)

    def left(self, now: float) -> float | None:
        """Seconds to go, None while nothing can be said."""
        if self.done >= self.total:
            return 0.0
        if self._began is None or not self._items or not self._parts or now <= self._began:
            return None
        each = self._item_parts / self._items
        # The first report is missing in the parts: it is work done, whose time is not known.
        growing = max(0.0, self._parts - self._item_parts)
        return max(0.0, (self.total - self.done) * each - growing) * (now - self._began) / self._parts
