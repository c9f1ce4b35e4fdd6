"""A progress bar on stderr, only where somebody watches."""

import sys
from time import monotonic
from types import TracebackType

from ckptkit.cli.text import Terminal, size

EVERY = 0.1  # seconds between two updates
PATIENCE = 0.5  # seconds before the first one: quick work shows nothing


class Bar:
    """Bytes done of `total`; silent unless stderr is a terminal. Use as a context manager, which clears it."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total = total
        self.done = 0
        self.label = ""
        self.width = Terminal.of(sys.stderr).width if total and not quiet else None
        self.started = monotonic()
        self.next = self.started + PATIENCE
        self.shown = False

    def advance(self, nbytes: int) -> None:
        """So many bytes more."""
        self.show(self.done + nbytes)

    def show(self, done: int) -> None:
        """So many bytes in all."""
        self.done = done
        now = monotonic()
        if self.width is None or now < self.next:
            return
        self.next = now + EVERY
        self.shown = True
        rate = size(int(done / max(now - self.started, 1e-9)))
        numbers = f" {self.label}{size(done)}/{size(self.total)}  {rate}/s"
        room = max(min(self.width - len(numbers) - 2, 40), 4)
        filled = min(room * done // max(self.total, 1), room)
        sys.stderr.write(f"\r {'━' * filled}{'─' * (room - filled)}{numbers}\x1b[K")
        sys.stderr.flush()

    def of(self, done: int, total: int) -> None:
        """So many bytes of so many."""
        self.total = total
        self.show(done)

    def phase(self, name: str, done: int, total: int) -> None:
        """Where a phase of the work stands; writing is not named, what follows it is."""
        label = "" if name == "write" else f"{name} "
        if label != self.label:
            self.label, self.started = label, monotonic()
        self.total = total
        self.show(done)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
