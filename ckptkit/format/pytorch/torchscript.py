"""TorchScript archives: which attributes of a scripted or traced module are its state dict.

    ROOT/data.pkl             GLOBAL __torch__.<module> <Class> NEWOBJ {attribute: value} BUILD, submodules nested
    ROOT/constants.pkl        tuple of tensors, the CONSTANTS.c0, c1, … of the code
    ROOT/code/__torch__/….py  the classes as source text

Parameters, buffers and other tensor attributes all lie in the same dict; which is which stands only in the text:
`class Linear(Module):` followed by `__parameters__ = ["weight", ]` and `__buffers__ = []`. The text is read line
by line for exactly these lines and never run. State dict order is torch's: a module's parameters, its buffers,
then its submodules. Source: torch 2.13 `jit/serialization`, `torch/csrc/jit/serialization/python_print.cpp`.
"""

import json
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.archive import Archive
from ckptkit.format.pytorch.nodes import Dict, Global, Object

CONSTANTS = "CONSTANTS"  # name that the code gives to the tuple of constants.pkl
_ROOT = "__torch__"
_MODULES = 100_000
_CLASS, _PARAMETERS, _BUFFERS = "class ", "  __parameters__ = [", "  __buffers__ = ["


class Members(NamedTuple):
    """What a class says of its attributes."""

    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


class Attribute(NamedTuple):
    """One attribute of a module: dotted path; `kind` is parameter, buffer or "" for one outside the state dict."""

    path: str
    value: object
    kind: str


def attributes(archive: Archive, root: object) -> list[Attribute]:
    """Every attribute of the modules below `root`, those of the state dict in its order.

    `root` is the value of data.pkl. Modules that contain each other end at the second visit on a path.
    Raises CkptError `torchscript-invalid` when the code of a class is missing or cannot be understood,
    `over-budget` for modules nested too deep.
    """
    classes = _Classes(archive)
    found: list[Attribute] = []
    todo: list[tuple[str, Object, int]] = []
    if isinstance(root, Object) and classes.members(root) is not None:
        todo.append(("", root, 0))
    else:
        found.append(Attribute("", root, ""))
    visited = 0
    while todo:
        prefix, module, depth = todo.pop()
        visited += 1
        if depth > archive.budgets.nesting or visited > _MODULES:
            raise CkptError("over-budget", "modules are nested without end", prefix)
        members = classes.members(module)
        assert members is not None
        values = _values(module, prefix)
        for kind, names in (("parameter", members.parameters), ("buffer", members.buffers)):
            found += (
                Attribute(prefix + name, values.pop(name), kind)
                for name in names
                if values.get(name) is not None
            )
        children = []
        for name, value in values.items():
            if isinstance(value, Object) and classes.members(value) is not None:
                children.append((f"{prefix}{name}.", value, depth + 1))
            else:
                found.append(Attribute(prefix + name, value, ""))
        todo += reversed(children)
    return found


def _values(module: Object, prefix: str) -> dict[str, object]:
    state = module.state
    if not isinstance(state, Dict) or not all(type(name) is str for name in state[::2]):
        raise CkptError("torchscript-invalid", "a module's attributes are not a dict", prefix or "the root")
    return dict(state.entries())


class _Classes:
    """The classes of the archive, read when first met."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.modules: dict[str, dict[str, Members | None]] = {}

    def members(self, value: Object) -> Members | None:
        """What the object's class says; None if it is no module."""
        cls = value.cls
        if not isinstance(cls, Global) or (cls.module != _ROOT and not cls.module.startswith(_ROOT + ".")):
            return None
        if cls.module == f"{_ROOT}.torch.classes" or cls.module.startswith(f"{_ROOT}.torch.classes."):
            return None  # implemented in C++, no code
        classes = self.modules.get(cls.module)
        if classes is None:
            name = f"code/{cls.module.replace('.', '/')}.py"
            if name not in self.archive:
                raise CkptError("torchscript-invalid", f"the code of {cls} is missing", name)
            text = self.archive.read(name, self.archive.budgets.string_bytes).decode("utf-8", "replace")
            classes = self.modules[cls.module] = parse_classes(text, name)
        if cls.name not in classes:
            raise CkptError("torchscript-invalid", f"the code does not define the class {cls}", None)
        return classes[cls.name]


def parse_classes(text: str, where: str) -> dict[str, Members | None]:
    """Class name → its members, None for classes that are no modules. Raises CkptError `torchscript-invalid`."""
    classes: dict[str, Members | None] = {}
    name = ""
    for line in text.split("\n"):
        if line.startswith(_CLASS) and line.endswith(":"):
            name, _, base = line[len(_CLASS) : -1].partition("(")
            classes[name] = Members((), ()) if base == "Module)" else None
        elif line.startswith((_PARAMETERS, _BUFFERS)):
            members = classes.get(name)
            if members is None:
                continue
            if line.startswith(_PARAMETERS):
                classes[name] = members._replace(parameters=_names(line[len(_PARAMETERS) :], where))
            else:
                classes[name] = members._replace(buffers=_names(line[len(_BUFFERS) :], where))
    return classes


def _names(text: str, where: str) -> tuple[str, ...]:
    """The names in `"weight", "bias", ]`."""
    try:
        names = json.loads("[" + text.rstrip().removesuffix("]").rstrip().removesuffix(",") + "]")
        if not all(type(name) is str for name in names):
            raise ValueError
    except (ValueError, RecursionError):
        raise CkptError("torchscript-invalid", "a list of parameters or buffers is none", where) from None
    return tuple(names)
