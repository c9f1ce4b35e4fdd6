"""What surrounds a command: its streams, and the signals that end it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What `kill`, `timeout`, batch systems and containers send, and what a terminal sends that closes.
_ENDING = ("SIGTERM", "SIGHUP")


class Stopped(BaseException):
    """A signal asked the process to end. `code` is the exit code that shells give then."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals that end the process raise `Stopped` inside, so that what is half written is removed.

    Only the first one does: nothing is to interrupt the cleaning up. Signals that are ignored (`nohup`) stay so.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise Stopped(number)

    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers}
    taken = {n: handler for n, handler in before.items() if handler is signal.SIG_DFL}
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def prepare_streams() -> None:
    """Make stdout and stderr take any text; where the caller closed one, nobody wants what it would say."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 — open to the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def mute() -> None:
    """Nobody takes what is still to be printed: it goes nowhere, at exit too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
