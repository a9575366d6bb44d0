"""What somebody who types `make run` sees: one line a step, and then what to do next."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO


class Console:
    """Writes steps; a terminal sees the one under way, a log file only those that ended."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        plain = "utf" not in (self.stream.encoding or "").lower()
        self._done, self._failed, self._note = ("ok", "!!", "-") if plain else ("✓", "✗", "·")
        self._open = ""

    @contextlib.contextmanager
    def step(self, title: str, *, done: str = "", shares: bool = False) -> Iterator[None]:
        """Show a step and how long it took.  `shares`: something else writes to the terminal meanwhile."""
        began = time.monotonic()
        self._show(title, end="\n" if shares else "")
        self._open = "" if shares else title
        try:
            yield
        except BaseException:
            self._close(f"  {self._failed} {title}")
            raise
        self._close(f"  {self._done} {done or title:<44}{time.monotonic() - began:>6.1f} s")

    def say(self, line: str) -> None:
        """A line of its own, also in the middle of a step."""
        step = self._open
        self._close(f"  {self._note} {line}")
        if step:
            self._show(step, end="")
            self._open = step

    def block(self, text: str) -> None:
        self._close(text)

    def _show(self, title: str, *, end: str) -> None:
        if self.terminal:
            print(f"  {self._note} {title} ...", end=end, file=self.stream, flush=True)

    def _close(self, line: str) -> None:
        start = "\r\x1b[2K" if self.terminal and self._open else ""
        self._open = ""
        print(f"{start}{line}", file=self.stream, flush=True)
