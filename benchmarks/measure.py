"""Running a command and a peer in turn: median seconds, peak resident memory, ratio."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Command = Sequence[str]


@dataclass
class Runs:
    """Seconds and peak resident megabytes of repeated runs of one command."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        return max(self.megabytes)


def once(command: Command) -> tuple[float, float]:
    """Seconds and peak resident megabytes of one run, output discarded. Raises if the command fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"benchmark command failed ({process.returncode}): {' '.join(command)[:300]}")
    return seconds, usage.ru_maxrss / 1024


def in_turn(commands: dict[str, Command], rounds: int, before: Callable[[], None]) -> dict[str, Runs]:
    """Run all commands `rounds` times, in turn; `before` clears what the previous run left."""
    runs = {name: Runs() for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            before()
            seconds, megabytes = once(command)
            runs[name].seconds.append(seconds)
            runs[name].megabytes.append(megabytes)
    before()
    return runs


def report(title: str, runs: dict[str, Runs], goal: str) -> None:
    """One table per case; ratios are ckptkit's time over the peer's."""
    print(f"\n{title}  (goal: {goal})")
    own = runs["ckptkit"].median
    for name, run in runs.items():
        ratio = "" if name == "ckptkit" else f"   ckptkit takes {own / run.median:.2f}×"
        print(f"  {name:32s} {run.median * 1000:9.0f} ms {run.peak:8.0f} MB{ratio}")
    sys.stdout.flush()
