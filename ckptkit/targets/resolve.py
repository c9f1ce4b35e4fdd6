"""What `--target` names: a contract or another checkpoint."""

import os
from os import PathLike

from ckptkit.core.errors import CkptError
from ckptkit.format import read
from ckptkit.targets.contract import SUFFIX, Contract
from ckptkit.targets.target import Target

_HEAD = b"ckptkit-contract"


def resolve(path: str | PathLike[str]) -> Target:
    """The target that a path names. Raises CkptError `not-found`, and what reading a contract or checkpoint raises."""
    name = os.fspath(path)
    if not os.path.exists(name):
        hint = f"a target is a contract (*{SUFFIX}) or a checkpoint, by its path"
        raise CkptError("not-found", "there is no such target", name, hint)
    if is_contract(name):
        return Contract.load(name).target()
    return Target.of(read(name))


def is_contract(path: str) -> bool:
    """Whether a file is a contract, by its name, or by its first lines where it is a YAML file."""
    if path.endswith(SUFFIX):
        return True
    if not path.endswith((".yaml", ".yml")) or not os.path.isfile(path):
        return False
    from ckptkit.core.files import File

    file = File.at(path)
    with file.open() as reader:
        return _HEAD in reader.read(0, min(file.size, 4096))
