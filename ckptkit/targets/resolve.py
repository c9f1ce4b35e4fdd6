"""What `--target` names: a contract, another checkpoint, a configuration of transformers, a module of the user,
or a published architecture."""

import os
from os import PathLike

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.format import read
from ckptkit.targets import catalogue, instantiate, made
from ckptkit.targets.contract import SUFFIX, Contract
from ckptkit.targets.factory import is_spec
from ckptkit.targets.target import Target

_HEAD = b"ckptkit-contract"
Given = Target | Contract | TensorGraph | str | PathLike[str]


def resolve(
    path: str | PathLike[str], *, allow_code: bool = False, time_limit: float | None = None
) -> Target:
    """The target of this path or name.

    Args:
        path: of a contract, checkpoint, config.json or folder; or `package.module:factory` or the name of a published
            architecture, unless there is such a path.
        allow_code: the factory may be called. Only what the user says may allow that, never a file.
        time_limit: seconds that making a model may take; by default `instantiate.TIME_LIMIT`.

    Raises CkptError `not-found`, `code-refused`, and what reading or making the target raises.
    """
    name = os.fspath(path)
    limit = instantiate.TIME_LIMIT if time_limit is None else time_limit
    if not os.path.exists(name):
        if is_spec(name):
            return made.of_factory(name, allow_code=allow_code, time_limit=limit)
        if catalogue.is_name(name):
            return catalogue.target(name)
        near = catalogue.near(name)
        known = f"a contract (*{SUFFIX}), a checkpoint, a config.json, package.module:factory"
        hint = f"a target is {known}, or one of `ckptkit architectures`"
        hint = f"meant: {', '.join(near)}" if near else hint
        raise CkptError("not-found", "there is no such target", name, hint)
    if is_contract(name):
        return Contract.load(name).target()
    if made.is_config(name):
        return made.of_config(name, time_limit=limit)
    return Target.of(read(name))


def target_of(given: Given, *, allow_code: bool = False, time_limit: float | None = None) -> Target:
    """What is given as target, by its path or name or as a value. Raises as `resolve` does."""
    if isinstance(given, Target):
        return given
    if isinstance(given, Contract):
        return given.target()
    if isinstance(given, TensorGraph):
        return Target.of(given)
    return resolve(given, allow_code=allow_code, time_limit=time_limit)


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
