"""Which contract belongs to a checkpoint, and which checkpoint to a contract.

A contract lies beside its checkpoint as `model.safetensors.ckpt.yaml` or `model.ckpt.yaml` (for a folder,
`llama.ckpt.yaml` beside it), or is named for a shell pattern of paths under `contracts` in the configuration.
"""

import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import PurePath

from ckptkit.core.errors import CkptError
from ckptkit.core.files import beside_file
from ckptkit.format import listing
from ckptkit.targets.contract import SUFFIX, Contract

_PART = re.compile(r"config\.json|.*\.index\.json|.*-\d{5}-of-\d{5}\..*")
_SKIPPED = ("node_modules", "site-packages", "__pycache__")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".th", ".pth.tar", "")


def contract_of(path: str, configured: Mapping[str, str]) -> str | None:
    """The contract that belongs to a checkpoint; None if there is none."""
    plain = os.path.normpath(path)
    stem = plain
    candidates = [plain + SUFFIX]
    while (shorter := os.path.splitext(stem)[0]) != stem and not os.path.isdir(plain):
        stem = shorter
        candidates.append(stem + SUFFIX)
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    posix = PurePath(plain).as_posix()
    return next((contract for pattern, contract in configured.items() if fnmatch(posix, pattern)), None)


def checkpoint_of(contract: str) -> str:
    """The checkpoint that a contract is about: what it says, else what lies beside it under its name.

    Raises CkptError `not-found` where there is none, and what reading a contract raises.
    """
    folder, name = os.path.split(contract)
    stated = Contract.load(contract).checkpoint
    if stated:
        found = str(beside_file(contract, stated))
        if not os.path.exists(found):
            raise CkptError(
                "not-found", "the checkpoint of a contract is not there", found, f"named by {contract}"
            )
        return found
    stem = os.path.join(folder, name.removesuffix(SUFFIX))
    for suffix in _SUFFIXES:
        if os.path.exists(stem + suffix):
            return stem + suffix
    raise CkptError(
        "not-found", "no checkpoint lies beside this contract", contract, "`checkpoint: FILE` in it names one"
    )


def model_of(path: str) -> str | None:
    """The checkpoint that a file is part of: its folder for a config.json, an index or a shard; else itself.

    None for a config.json beside no weights.
    """
    folder, name = os.path.split(path)
    if not os.path.isfile(path) or not _PART.fullmatch(name):
        return path
    if _has_weights(folder or "."):
        return folder or "."
    return None if name == "config.json" else path


def _has_weights(folder: str) -> bool:
    return any(name.endswith((".safetensors", ".bin")) for name in listing.files(folder))


def all_of(configured: Mapping[str, str], folder: str = ".") -> Iterator[str]:
    """Every contract in a folder and below, and every path that the configuration has a contract for.

    A pattern matches what it matches in `contract_of`. One that nothing matches comes as it is written: what it names
    is gone.
    """
    from glob import glob

    matched: dict[str, list[str]] = {pattern: [] for pattern in configured}
    for path in _below(folder):
        if path.endswith(SUFFIX):
            yield path
        posix = PurePath(path).as_posix()
        for pattern, paths in matched.items():
            if fnmatch(posix, pattern):
                paths.append(path)
    for pattern, paths in matched.items():  # what is hidden is only looked for by its name
        yield from paths or sorted(glob(pattern, root_dir=folder)) or [pattern]


def _below(folder: str) -> Iterator[str]:
    """Files and folders in a folder and below, hidden ones and installed packages left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _SKIPPED)
        for name in (*folders, *sorted(names)):
            yield os.path.normpath(os.path.join(root, name))
