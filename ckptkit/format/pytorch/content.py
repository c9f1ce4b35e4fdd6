"""What a container gives to the part that makes a tensor graph of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ckptkit.core.dtypes import BY_TORCH
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.format.pytorch.globals import is_plain
from ckptkit.format.pytorch.nodes import Global
from ckptkit.format.pytorch.rebuild import Rebuilder
from ckptkit.format.pytorch.refs import storage_dtype

# Named beside the calls that are understood.
_CONSTANTS = {("numpy", "dtype")} | {
    ("torch", f"per_{what}_affine{how}") for what in ("tensor", "channel") for how in ("", "_float_qparams")
}


@dataclass(frozen=True, slots=True)
class Content:
    """A container, read.

    Attributes:
        value: the value of its main pickle, storages being `StorageRef`.
        container: what it is and which releases of torch write it, in words.
        globals_seen: every class and function that any of its pickles names.
        stored: bytes of its storages together.
        details: further facts, JSON-able.
        findings: what was odd.
    """

    value: Any
    container: str
    globals_seen: tuple[Global, ...] = ()
    stored: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def classes_not_run(seen: Iterable[Global]) -> list[str]:
    """What of the names in a pickle is no data that ckptkit understands, each once, in order.

    Names count wherever they stand, also where a call's result was thrown away.
    """
    rebuilder = Rebuilder()
    found = (cls for cls in seen if not _is_data(cls, rebuilder))
    return list(dict.fromkeys(str(cls) for cls in found))


def _is_data(cls: Global, rebuilder: Rebuilder) -> bool:
    if cls.module == "__torch__" or cls.module.startswith("__torch__."):
        return True  # a module of TorchScript, whose code lies in the archive
    if is_plain(cls) or rebuilder.handler(cls) or (cls.module, cls.name) in _CONSTANTS:
        return True
    if cls.module == "torch" and cls.name in BY_TORCH:
        return True
    try:
        storage_dtype(cls)
    except CkptError:
        return False
    return True
