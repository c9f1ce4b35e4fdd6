"""`python -m fuzz.guided TARGET [libFuzzer options]`: coverage-guided fuzzing of one target with atheris.

Starts from the fixtures, which it writes to a corpus folder (`--corpus=FOLDER`, else a temporary one) with its own
mutations beside libFuzzer's. A long run: `python -m fuzz.guided pickle -max_total_time=86400 -rss_limit_mb=2048`.
"""

import hashlib
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ckptkit"]):
    from fuzz.targets import TARGETS, seeds

from fuzz.mutate import mutate


def main() -> None:
    name, *options = sys.argv[1:]
    folder = next((o.partition("=")[2] for o in options if o.startswith("--corpus=")), None)
    corpus = Path(folder or tempfile.mkdtemp(prefix=f"corpus-{name}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    found = seeds(name)
    for data in found:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def custom(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(3) == 0:
            return atheris.Mutate(data, most)
        return mutate(data, rng.choice(found), rng)[:most]

    rest = [option for option in options if not option.startswith("--corpus=")]
    limits = ["-max_len=65536", "-timeout=10"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *rest], TARGETS[name], custom_mutator=custom)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
