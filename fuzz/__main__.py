"""`python -m fuzz [TARGET…] [--runs N] [--seconds S] [--seed N] [--keep FOLDER]`: mutated fixtures into the parsers.

A find is written to the folder and told; the exit code is 1 if there is any.
"""

import argparse
import hashlib
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from fuzz.mutate import mutate
from fuzz.targets import TARGETS, seeds

_HANGS = 10  # seconds after which an input hangs


def _hang(number: int, frame: FrameType | None) -> None:
    raise AssertionError("hangs")


def fuzz(name: str, runs: int, seconds: float, seed: int, keep: Path | None) -> tuple[int, int]:
    """How many inputs were tried and how many of them were finds."""
    target, corpus = TARGETS[name], seeds(name)
    rng = random.Random(f"{name} {seed}")
    stop = time.monotonic() + seconds
    found: set[str] = set()
    done = 0
    signal.signal(signal.SIGALRM, _hang)
    while done < runs and time.monotonic() < stop:
        data = mutate(rng.choice(corpus), rng.choice(corpus), rng)
        done += 1
        signal.alarm(_HANGS)
        try:
            target(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}"
            if place not in found:
                found.add(place)
                digest = hashlib.sha256(data).hexdigest()[:12]
                print(f"{name}: {place}: {error} ({digest})", flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{digest}").write_bytes(data)
        finally:
            signal.alarm(0)
        if len(corpus) < 5_000 and done % 200 == 0:
            corpus.append(data)  # let mutations pile up
    return done, len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--runs", type=int, default=sys.maxsize, help="inputs for each target")
    parser.add_argument("--seconds", type=float, default=20, help="time for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that are finds")
    chosen = parser.parse_args()
    finds = total = 0
    for name in chosen.targets or TARGETS:
        started = time.monotonic()
        done, found = fuzz(name, chosen.runs, chosen.seconds, chosen.seed, chosen.keep)
        print(f"{name}: {done} inputs in {time.monotonic() - started:.0f} s, {found} finds", flush=True)
        total, finds = total + done, finds + found
    print(f"{total} inputs, {finds} finds")
    return int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
