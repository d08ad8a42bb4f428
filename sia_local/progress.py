"""How far a long command is, on one line of standard error, and how long the rest will take."""

from __future__ import annotations

import os
import sys
import time


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def left(seconds: float | None) -> str:
    """`3 min 20 s left`, `? left` while nothing can be said."""
    return f"{'?' if seconds is None else duration(seconds)} left"


class Pace:
    """Counts items, and says how long the others will take.

    The clock runs from the first report on, and not from a pause() to the next one, so that loading and warming up do
    not count. Where many items are worked on at once, part() counts their parts as they come (tokens of texts) and
    item() says how many an item had: the first texts of sixteen that grow together come late, which says nothing about
    the pace. Where nothing is heard before an item is done, `together` says how many are worked on at once: as many
    must have come before the pace is known. What comes in bursts is counted up to the burst before.
    """

    def __init__(self, total: int, done: int = 0, together: int = 1):
        self.total, self.done = total, done
        self.together, self._heard = together, False
        self._at: float | None = None  # when the last report came
        self._parts = self._seconds = 0.0
        self._known = 0.0, 0.0  # parts and seconds when the last burst began
        self._reports = 0
        self._items = self._gone = 0.0
        self.counted = 0.0  # parts of the items that are done

    def part(self, count: float = 1) -> None:
        """Parts of items that are not done yet."""
        self._heard = True
        self._report(count)

    def item(self, count: int = 1, parts: float | None = None) -> None:
        """`count` items are done; `parts`: how many, told before, they had. Without, they are told of only now."""
        self.done += count
        if parts is None or not self._heard:
            parts = count
            self._report(count)
        self._items, self.counted = self._items + count, self.counted + parts

    def skip(self, count: int = 1) -> None:
        """Items that took no time."""
        self.done += count

    def drop(self, count: int) -> None:
        """Items that will not be done, among them those that have begun."""
        self.total -= count
        self._gone = self._parts - self.counted

    def pause(self) -> None:
        """The time until the next report is spent on something else."""
        self._at = None

    @property
    def rate(self) -> float:
        """Parts a second, 0 while nothing can be said."""
        parts, seconds = self._known
        return parts / seconds if seconds > 0 else 0.0

    def left(self) -> float | None:
        """Seconds to go, None while nothing can be said."""
        if self.done >= self.total:
            return 0.0
        if not self._items or not self.rate or (not self._heard and self._known[0] < self.together):
            return None
        growing = max(0.0, self._parts - self.counted - self._gone)
        each = self.counted / self._items
        return max(0.0, (self.total - self.done) * each - growing) / self.rate

    def _report(self, parts: float) -> None:
        now = time.monotonic()
        if self._at is not None:
            gap = now - self._at
            self._seconds += gap
            self._reports += 1
            if gap >= 0.5 * self._seconds / self._reports:
                # What came before took this long: its first part is counted, whose time is not, this one the other way.
                self._known = self._parts, self._seconds
        self._parts += parts
        self._at = now


class Line:
    """A terminal sees one line rewritten, a log file a line every `every` seconds."""

    def __init__(self, every: float = 15.0):
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._last = time.monotonic()
        self._open = False

    def show(self, text: str, last: bool = False) -> None:
        """The line as it is now, where it is time for one, or this is the last."""
        now = time.monotonic()
        if now - self._last < self._every and not last:
            return
        self._last, self._open = now, self._terminal
        start, end = ("\r\033[K", "") if self._terminal else ("", "\n")
        if self._terminal and not last:
            # A line that wraps is not rewritten.
            text = text[: (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1]
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)
        if last:
            self.end()

    def end(self) -> None:
        """What is printed next begins a line of its own."""
        if self._open:
            self._open = False
            print(file=sys.stderr, flush=True)


class Progress(Pace):
    """A Pace that is shown: `label: 12/300, 3 min 20 s left`."""

    def __init__(self, label: str, total: int, done: int = 0, together: int = 1):
        super().__init__(total, done, together)
        self.label = label
        self._line = Line()

    def update(self, count: int = 1, note: str = "", parts: float | None = None) -> None:
        """item(), and the line."""
        self.item(count, parts)
        note = f", {note}" if note else ""
        self._line.show(f"{self.label}: {self.done}/{self.total}, {left(self.left())}{note}", self.done >= self.total)
