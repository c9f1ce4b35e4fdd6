"""Really loads hostile files, each in a process of its own, and says which of them ran.

`python loading.py` reads `[[path, loader], …]` as JSON from stdin and prints one line `[path, ran, error]` for each.
It loads what it is given as its victims do: only fixtures of this project, which make a folder called `ran`.
"""

import gzip
import json
import os
import pickle
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable

MODULE = "import os\nos.mkdir('ran')\ndef __getattr__(name):\n    return dict\n"


class Lenient(pickle.Unpickler):
    """An unpickler that takes any persistent id."""

    def persistent_load(self, pid: object) -> object:
        return None


def load_pickle(path: str) -> None:
    with open(path, "rb") as file:
        Lenient(file).load()


def load_pickles(path: str) -> None:
    with open(path, "rb") as file:
        for _ in range(4):
            pickle.load(file)


def load_stream(path: str) -> None:
    """From a file without a buffer, as from a pipe."""
    with open(path, "rb", buffering=0) as file:
        Lenient(file).load()


def load_torch(path: str) -> None:
    import torch

    torch.load(path, weights_only=False)


def load_numpy(path: str) -> None:
    import numpy

    found = numpy.load(path, allow_pickle=True)
    if hasattr(found, "files"):
        [found[name] for name in found.files]


def load_joblib(path: str) -> None:
    import joblib

    joblib.load(path)


def load_zipfile(path: str) -> None:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with archive.open(name) as file:
            Lenient(file).load()


def load_tarfile(path: str) -> None:
    with tarfile.open(path) as archive:
        file = archive.extractfile(archive.getnames()[0])
        assert file is not None
        pickle.load(file)


def load_gzip(path: str) -> None:
    with gzip.open(path) as file:
        pickle.load(file)


def load_yaml(path: str) -> None:
    import yaml

    with open(path, "rb") as file:
        yaml.unsafe_load(file)


def load_package(path: str) -> None:
    from torch.package import PackageImporter

    PackageImporter(path).load_pickle("model", "model.pkl")


LOADERS: dict[str, Callable[[str], None]] = {
    name.removeprefix("load_"): value for name, value in list(globals().items()) if name.startswith("load_")
}


def attempt(path: str, loader: str) -> tuple[bool, str]:
    """Whether loading the file made the folder, and what the loader said."""
    with tempfile.TemporaryDirectory() as folder:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.chdir(folder)
            os.mkdir("seed")
            for name in ("evil_module.py", "torch_evil.py"):
                with open(name, "w") as file:
                    file.write(MODULE)
            sys.path.insert(0, folder)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            try:
                LOADERS[loader](path)
            except BaseException as error:
                os.write(write, f"{type(error).__name__}: {error}".encode()[:500])
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as said:
            text = said.read().decode("utf-8", "replace")
        os.waitpid(child, 0)
        return os.path.isdir(os.path.join(folder, "ran")), text


def main() -> None:
    warnings.simplefilter("ignore")
    jobs = json.load(sys.stdin)
    if any(loader in ("torch", "package") for _, loader in jobs):
        import torch  # noqa: F401, once, before forking
    for path, loader in jobs:
        print(json.dumps([path, *attempt(path, loader)]), flush=True)


if __name__ == "__main__":
    main()
