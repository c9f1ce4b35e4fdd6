"""What a name in a pickle is: `data`, `code` or `unknown`.

`data` is an exact list of pairs (module, name): what rebuilds tensors, and containers of plain values. Nothing is
data because of where it lives, how it begins or what it ends with. There is no list of bad names, because such
lists have holes: whatever is not data is `unknown`, and `code` where it is plain that it does more than hold
values, being part of Python itself or reached through an attribute of something else.
"""

import sys
from typing import Literal

from ckptkit.core.dtypes import BY_TORCH
from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.globals import is_plain
from ckptkit.format.pytorch.nodes import Global, Object
from ckptkit.format.pytorch.rebuild import Rebuilder
from ckptkit.format.pytorch.refs import storage_dtype

Verdict = Literal["data", "code", "unknown"]

LOAD_FROM_BYTES = ("torch.storage", "_load_from_bytes")
ENCODE = ("_codecs", "encode")
# Data only for what they are called with, which is seen only where the pickle itself calls them. Put into the
# `__setstate__` of an instance, or given to `_rebuild_from_type_v2`, they are called with anything.
JUDGED_BY_CALL = frozenset({LOAD_FROM_BYTES, ENCODE})

# Beside what the reader itself understands: constructors of plain values that hold what they are given.
_DATA = frozenset(
    {
        ("builtins", "object"), ("__builtin__", "object"), ("__builtin__", "unicode"), ("__builtin__", "long"),
        ("argparse", "Namespace"), ("types", "SimpleNamespace"),
        ("datetime", "date"), ("datetime", "datetime"), ("datetime", "time"), ("datetime", "timedelta"),
        ("datetime", "timezone"), ("decimal", "Decimal"), ("fractions", "Fraction"), ("uuid", "UUID"),
        ("numpy", "dtype"),
        *(("torch", f"per_{what}_affine{how}") for what in ("tensor", "channel") for how in ("", "_float_qparams")),
    }
)  # fmt: skip
_PYTHON_2 = frozenset(
    {
        "__builtin__",
        "copy_reg",
        "commands",
        "cPickle",
        "cStringIO",
        "popen2",
        "exceptions",
        "urllib2",
        "thread",
    }
)
_ENCODINGS = frozenset({"latin1", "latin-1"})


def classify(module: str, name: str) -> Verdict:
    """What loading a class or function of that name would bring in."""
    cls = Global(module, name)
    if (module, name) in _DATA or is_plain(cls) or Rebuilder().handler(cls):
        return "data"
    if module == "torch" and name in BY_TORCH:
        return "data"
    if _is_storage(cls):
        return "data"
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in _PYTHON_2 or "." in name or name.startswith("__"):
        return "code"
    return "unknown"


def is_torchscript(module: str) -> bool:
    """Whether the name is one of TorchScript's own, defined in the archive and known to its loader alone."""
    return module == "__torch__" or module.startswith("__torch__.")


def harmless_call(call: Object) -> bool:
    """Whether a call of something that is data is data with these arguments."""
    if call.name == ENCODE:  # any other codec is looked up among the modules of `encodings`
        return len(call.args) == 2 and isinstance(call.args[0], str) and call.args[1] in _ENCODINGS
    return True


def _is_storage(cls: Global) -> bool:
    try:
        storage_dtype(cls)
    except CkptError:
        return False
    return True
