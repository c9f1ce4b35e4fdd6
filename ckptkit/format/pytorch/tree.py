"""From the value of a pickle to a flat list of named tensors and other leaves.

Names. A path's keys are joined by dots: `str(key)` of plain keys, positions of list items, attributes of
objects; a tensor that is the whole checkpoint is `tensor`. A module gives exactly the names of its state dict;
its other tensors are found too, but `apart`. Classes that are not known are leaves and are searched like dicts.

Limits. The walk keeps its own stack. A container that contains itself ends there; one that is shared is walked on
each path that leads to it, as long as that does not blow up what the file holds (`over-budget`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Leaf
from ckptkit.core.tensor import Tensor
from ckptkit.format.pytorch.globals import SCALARS, Opaque, Value, attributes, simplify
from ckptkit.format.pytorch.modules import members
from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set
from ckptkit.format.pytorch.rebuild import Absent, Rebuilder, Rebuilt
from ckptkit.format.pytorch.refs import StorageRef

LONE = "tensor"  # name of a tensor that is the whole checkpoint

_SHARED = 250_000  # things met again through shared containers, beyond four times those met first
_MANY = 1_000  # a dict of so many plain values is one leaf
_WRAPPED = 20  # simplifications of one value, each of which unwraps it
_BRANCHES = 4  # levels of containers that are remembered as branches

Kind = Literal["mapping", "sequence", "module", "object"]


@dataclass(slots=True, eq=False)
class Branch:
    """A container of the upper levels; the tensors below it are `names[start:stop]` of the tree.

    `direct` counts the tensors that it holds itself, `keys` its own keys.
    """

    path: str
    key: str
    kind: Kind
    start: int
    stop: int = 0
    direct: int = 0
    keys: frozenset[str] = frozenset()
    branches: list["Branch"] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(slots=True, eq=False)
class Tree:
    """What was found: tensors by full dotted path in order, those apart from any state dict, other leaves."""

    root: Branch
    names: list[str] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    apart: list[tuple[str, Tensor]] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    attributes: dict[str, Dict] = field(default_factory=dict)  # of state dicts, by path


@dataclass(slots=True, eq=False)
class _Frame:
    """A container being walked."""

    children: Iterator[tuple[str, Any]]
    prefix: str  # path with its dot
    id: int
    branch: Branch | None
    apart: bool
    again: bool
    kind: str  # of plain tensors directly in it


def flatten(value: object, rebuilder: Rebuilder, budgets: Budgets) -> Tree:
    """Walk the value of a pickle.

    Raises CkptError `tensor-invalid`, `view-invalid`, `dtype-unknown`, … for a tensor that cannot be rebuilt
    (with its path), `over-budget` for nesting or sharing beyond the limits.
    """
    walk = _Walk(rebuilder, budgets)
    walk.finish(value)
    return walk.tree


def flatten_attributes(
    found: Iterable[tuple[str, object, str]], rebuilder: Rebuilder, budgets: Budgets
) -> Tree:
    """As `flatten`, for a module whose members are known: (dotted path, value, kind) each, as in `Member`."""
    walk = _Walk(rebuilder, budgets)
    inside: list[tuple[str, object]] = []
    rest: list[tuple[str, object]] = []
    kinds: dict[str, str] = {}
    for name, value, kind in found:
        kinds[name] = kind
        (inside if kind else rest).append((name, value))
    walk.start(rest, "", -1, None, apart=True)
    walk.start(inside, "", -2, None, kind="module", root=True)
    walk.finish()
    tree = walk.tree
    for i, name in enumerate(tree.names):
        tree.tensors[i] = replace(tree.tensors[i], kind=kinds.get(name, ""))
    return tree


class _Walk:
    def __init__(self, rebuilder: Rebuilder, budgets: Budgets) -> None:
        self.rebuilder = rebuilder
        self.budgets = budgets
        self.tree = Tree(Branch("", "", "object", 0))
        self.stack: list[_Frame] = []
        self.on_path: set[int] = set()
        self.walked: set[int] = set()
        self.first = 0  # things met for the first time, and again
        self.again = 0
        self.characters = 0
        self.path = ""
        self.keep: list[object] = []  # nodes made on the way, whose ids must stay taken

    def finish(self, *values: object) -> None:
        """Walk all that was started, or one value from the root."""
        try:
            for value in values:
                self.place("", value, None, False)
            self.drain()
        except CkptError as error:
            if error.where is not None or not self.path:
                raise
            raise CkptError(error.code, error.message, self.path[:200], error.hint) from None
        self.tree.root.stop = len(self.tree.names)

    def drain(self) -> None:
        stack = self.stack
        tree = self.tree
        while stack:
            frame = stack[-1]
            depth = len(stack)
            branch = frame.branch
            prefix = frame.prefix
            apart = frame.apart
            kind = frame.kind
            handler_of = self.rebuilder.handler
            plain = Rebuilder.tensor
            build = self.rebuilder.tensor
            names, tensors = tree.names, tree.tensors
            met = direct = 0
            for key, child in frame.children:
                met += 1
                path = self.path = prefix + key
                if type(child) is Object and not apart and handler_of(child.cls) is plain:
                    tensors.append(build(child, kind))
                    names.append(path)
                    direct += 1
                    continue
                before = len(names)
                self.place(path, child, branch, apart)
                if len(stack) > depth:
                    break
                direct += len(names) - before
            self.count(frame, met)
            if branch is not None:
                branch.direct += direct
            if len(stack) == depth:
                stack.pop()
                self.on_path.discard(frame.id)
                if branch is not None:
                    branch.stop = len(names)

    def count(self, frame: _Frame, met: int) -> None:
        self.characters += met * len(frame.prefix)
        if frame.again:
            self.again += met
            if self.again > _SHARED + 4 * self.first:
                raise CkptError("over-budget", "shared values unfold to far more than the file holds")
        else:
            self.first += met
        if self.characters > self.budgets.string_bytes:
            raise CkptError("over-budget", "the names of what the file holds are too long")

    def place(self, path: str, node: Any, branch: Branch | None, apart: bool) -> None:
        """Put down a leaf or tensor, or start on a container."""
        kind = type(node)
        if kind in SCALARS:
            self.tree.leaves.append(Leaf(path, kind.__name__, node))
        elif kind is Object:
            self.call(path, node, branch, apart)
        elif kind is Dict:
            self.mapping(path, node, id(node), branch, apart)
        elif kind is list or kind is tuple or kind is Set:
            self.sequence(path, node, branch, apart)
        elif kind is StorageRef:
            self.put(path, self.rebuilder.storage(node), apart)
        else:
            self.leaf(path, node)

    def leaf(self, path: str, node: object) -> None:
        if isinstance(node, str):
            leaf = Leaf(path, "str", str(node))
        elif isinstance(node, Value):
            leaf = Leaf(path, node.type, node.value, opaque=isinstance(node, Opaque))
        elif type(node) is Global:
            known = node.module == "torch"
            leaf = Leaf(
                path, "torch constant" if known else str(node), str(node) if known else None, not known
            )
        elif type(node) in SCALARS:
            leaf = Leaf(path, type(node).__name__, node)
        else:
            leaf = Leaf(path, type(node).__name__)
        self.tree.leaves.append(leaf)

    def mapping(
        self, path: str, node: Dict, identity: int, branch: Branch | None, apart: bool, kind: Kind = "mapping"
    ) -> None:
        keys, values = node[::2], node[1::2]
        if len(keys) >= _MANY and set(map(type, values)) <= SCALARS and set(map(type, keys)) <= SCALARS:
            self.tree.leaves.append(Leaf(path, "dict", dict(zip(map(str, keys), values, strict=True))))
        elif not keys:
            self.tree.leaves.append(Leaf(path, "dict", {}))
        else:
            self.start(_named(keys, values), path, identity, branch, apart, kind, keys)

    def sequence(self, path: str, node: Any, branch: Branch | None, apart: bool) -> None:
        if set(map(type, node)) <= SCALARS:
            name = "list" if type(node) is list else "tuple" if type(node) is tuple else "set"
            self.tree.leaves.append(Leaf(path, name, list(node)))
        else:
            children = ((str(i), item) for i, item in enumerate(node))
            self.start(children, path, id(node), branch, apart, "sequence")

    def call(self, path: str, obj: Object, branch: Branch | None, apart: bool) -> None:
        for _ in range(_WRAPPED):
            found = self.rebuilder.rebuild(obj)
            if found is not None:
                self.rebuilt(path, found, apart)
                return
            node = simplify(obj)
            if node is obj:
                self.instance(path, obj, branch, apart)
                return
            self.keep.append(node)
            if type(node) is Dict:
                if obj.state is not None:
                    self.tree.attributes[path] = attributes(obj)
                self.mapping(path, node, id(obj), branch, apart)
                return
            if type(node) is not Object:
                self.place(path, node, branch, apart)
                return
            obj = node
        raise CkptError("over-budget", f"a value is wrapped more than {_WRAPPED} times")

    def instance(self, path: str, obj: Object, branch: Branch | None, apart: bool) -> None:
        """A module, or an object of an unknown class."""
        if self.on_path & {id(obj), -id(obj)}:
            self.tree.leaves.append(Leaf(path, "cycle"))
            return
        inner = _TRANSPARENT.get(obj.name)
        found = None if inner is None else next((v for k, v in attributes(obj).entries() if k == inner), None)
        value = found if type(found) in SCALARS else None
        self.tree.leaves.append(Leaf(path, obj.type, value, opaque=True))
        if type(found) is Dict:
            self.mapping(path, found, id(obj), branch, apart)
            return
        if type(found) is list:
            self.sequence(path, found, branch, apart)
            return
        if value is not None:
            return
        inside = members(obj)
        if inside is None:
            self.start(_parts(obj), path, id(obj), branch, apart, "object")
            return
        rest = [(member.name, member.value) for member in inside if not member.kind]
        state = [(member.name, member.value) for member in inside if member.kind]
        self.start(rest, path, -id(obj), None, apart=True)
        self.start(state, path, id(obj), branch, apart, "module")

    def start(
        self,
        children: Iterable[tuple[str, Any]],
        path: str,
        identity: int,
        branch: Branch | None,
        apart: bool = False,
        kind: Kind = "mapping",
        keys: Iterable[object] = (),
        root: bool = False,
    ) -> None:
        if identity in self.on_path:
            self.tree.leaves.append(Leaf(path, "cycle"))
            return
        if len(self.stack) >= self.budgets.nesting:
            raise CkptError("over-budget", f"values are nested more than {self.budgets.nesting} deep")
        again = identity in self.walked or bool(self.stack and self.stack[-1].again)
        self.walked.add(identity)
        self.on_path.add(identity)
        made = None
        if not apart and (root or len(self.stack) < _BRANCHES):
            made = self.branch(path, branch, kind, keys)
        prefix = f"{path}." if path else ""
        tensors = "buffer" if kind == "module" else ""  # parameters say themselves that they are
        self.stack.append(_Frame(iter(children), prefix, identity, made, apart, again, tensors))

    def branch(self, path: str, parent: Branch | None, kind: Kind, keys: Iterable[object]) -> Branch:
        if not path:
            made = self.tree.root
            made.kind = kind
        else:
            cut = len(parent.path) + 1 if parent is not None and parent.path else 0
            made = Branch(path, path[cut:], kind, len(self.tree.names))
            if parent is not None:
                parent.branches.append(made)
        made.keys = frozenset(key for key in islice(keys, _MANY) if isinstance(key, str))
        return made

    def rebuilt(self, path: str, found: Rebuilt, apart: bool) -> None:
        if isinstance(found, Tensor):
            self.put(path, found, apart)
        elif isinstance(found, Absent):
            shape = "" if found.shape is None else f" of shape {list(found.shape)}"
            self.tree.leaves.append(Leaf(path, found.type))
            self.tree.findings.append(
                Finding("tensor-absent", "warning", path, f"{found.type}{shape} was saved without data")
            )
        elif found is not None:
            for suffix, tensor in found.tensors:
                self.put(f"{path}.{suffix}" if path and suffix else path or suffix, tensor, apart)
            if found.attributes is not None:
                self.keep.append(found.attributes)
                self.place(path, found.attributes, None, True)

    def put(self, path: str, tensor: Tensor, apart: bool) -> None:
        path = path or LONE
        if apart:
            self.tree.apart.append((path, tensor))
        else:
            self.tree.names.append(path)
            self.tree.tensors.append(tensor)


# Wrappers whose one attribute takes their place.
_TRANSPARENT = {
    ("omegaconf.dictconfig", "DictConfig"): "_content",
    ("omegaconf.listconfig", "ListConfig"): "_content",
} | {
    ("omegaconf.nodes", f"{name}Node"): "_val"
    for name in ("Any", "String", "Integer", "Float", "Boolean", "Enum", "Bytes", "Path", "Interpolation")
}


def _named(keys: list[Any], values: list[Any]) -> Iterable[tuple[str, Any]]:
    """Names and values of a dict. Of equal keys the last value counts, as in Python."""
    if set(map(type, keys)) == {str}:
        return dict(zip(keys, values, strict=True)).items()
    found: dict[tuple[type, str], tuple[str, Any]] = {}
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        name = _key(key, i)
        found[str if isinstance(key, str) else type(key), name] = (name, value)
    return found.values()


def _key(key: object, position: int) -> str:
    if type(key) in SCALARS or isinstance(key, str) or type(key) is Global:
        return str(key)
    if type(key) is tuple and len(key) <= 16 and set(map(type, key)) <= SCALARS:
        return str(key)
    return f"#{position}"


def _parts(obj: Object) -> Iterator[tuple[str, Any]]:
    """What an object of an unknown class holds: attributes, items, entries, and arguments that hold something."""
    state = attributes(obj)
    yield from _named(state[::2], state[1::2])
    for i, item in enumerate(obj.items or ()):
        yield str(i), item
    pairs = obj.pairs or []
    yield from _named(pairs[::2], pairs[1::2])
    for i, arg in enumerate((*obj.args, *((obj.extra,) if obj.extra else ()))):
        if type(arg) not in SCALARS and type(arg) is not Global and arg != ():
            yield f"args.{i}", arg
