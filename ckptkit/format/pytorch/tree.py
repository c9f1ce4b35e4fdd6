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
from ckptkit.core.graph import Leaf
from ckptkit.core.tensor import Tensor
from ckptkit.format.pytorch.composites import number
from ckptkit.format.pytorch.globals import SCALARS, Opaque, attributes, simplify
from ckptkit.format.pytorch.modules import PARTS
from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set, Value
from ckptkit.format.pytorch.packed import Number, convolution, is_packed, module_members
from ckptkit.format.pytorch.rebuild import Rebuilder
from ckptkit.format.pytorch.records import Absent, Rebuilt, noted
from ckptkit.format.pytorch.refs import StorageRef, shortened

VERSIONS = "_metadata"  # attribute of a state dict: {prefix: {"version": n}}
METADATA = "ckptkit_metadata"  # attribute of a state dict written by ckptkit: other metadata, str to str
LONE = "tensor"  # name of a tensor that is the whole checkpoint

_SHARED = 100_000  # things met again through shared containers, beyond four times those met first
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
    """What was found: tensors by full dotted path in order, those apart from any state dict, those without data,
    other leaves."""

    root: Branch
    names: list[str] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    apart: list[tuple[str, Tensor]] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    absent: list[tuple[str, str, bool]] = field(default_factory=list)  # path, what it is, whether apart
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)  # metadata of state dicts, by path


@dataclass(slots=True, eq=False)
class _Frame:
    """A container being walked."""

    children: Iterator[tuple[str, Any]]
    prefix: str  # path with its dot
    id: int
    branch: Branch | None
    apart: bool
    kind: str  # of plain tensors directly in it
    packed: bool  # whether an object of C++ is around it


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
        self.room = budgets.header_bytes  # characters that names may still have
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
            raise CkptError(error.code, error.message, shortened(self.path), error.hint) from None
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
            usual = not apart and not frame.packed
            handler_of = self.rebuilder.handler
            plain = Rebuilder.tensor
            build = self.rebuilder.tensor
            names, tensors = tree.names, tree.tensors
            direct = 0
            for key, child in frame.children:
                path = self.path = prefix + key
                self.room -= len(path)
                if self.room < 0:
                    raise CkptError("over-budget", "the names of what the file holds are too long")
                usual_tensor = usual and type(child) is Object and handler_of(child.cls) is plain
                if usual_tensor and not (child.pairs or child.items):
                    tensors.append(build(child, kind))
                    names.append(path)
                    direct += 1
                    continue
                before = len(names)
                self.place(path, child, branch, apart)
                if len(stack) > depth:
                    break
                direct += len(names) - before
            if branch is not None:
                branch.direct += direct
            if len(stack) == depth:
                stack.pop()
                self.on_path.discard(frame.id)
                if branch is not None:
                    branch.stop = len(names)

    def charge(self, *nodes: object) -> None:
        """Count what these hold, which is about to be looked at; what was met before counts as shared."""
        for part in (part for node in nodes for part in _contents(node)):
            if id(part) in self.walked:
                self.again += len(part)
            else:
                self.walked.add(id(part))
                self.first += len(part)
        if self.again > _SHARED + 4 * self.first:
            raise CkptError("over-budget", "shared values unfold to far more than the file holds")

    def place(self, path: str, node: Any, branch: Branch | None, apart: bool) -> None:
        """Put down a leaf or tensor, or start on a container."""
        kind = type(node)
        if kind in SCALARS:
            self.tree.leaves.append(Leaf(path, kind.__name__, node))
        elif kind is Object:
            self.call(path, node, branch, apart)
        elif kind in _CONTAINERS:
            self.charge(node)
            self.container(path, node, id(node), branch, apart)
        elif kind is StorageRef:
            self.put(path, self.rebuilder.storage(node), apart)
        elif kind is Number:
            self.put(path, number(self.rebuilder, node.value, node.dtype), apart)
        else:
            self.leaf(path, node)

    def container(self, path: str, node: Any, identity: int, branch: Branch | None, apart: bool) -> None:
        """Start on a dict, list, tuple or set, unless it is nothing but plain values."""
        kind = type(node)
        if kind is not Dict:
            if set(map(type, node)) <= SCALARS:
                self.tree.leaves.append(Leaf(path, _CONTAINERS[kind], list(node)))
            else:
                children = ((str(i), item) for i, item in enumerate(node))
                self.start(children, path, identity, branch, apart, "sequence")
            return
        keys, values = node[::2], node[1::2]
        plain = set(map(type, values)) | set(map(type, keys)) <= SCALARS
        if not keys or (plain and len(keys) >= _MANY):
            self.tree.leaves.append(Leaf(path, "dict", dict(zip(map(str, keys), values, strict=True))))
        else:
            self.start(_named(keys, values), path, identity, branch, apart, "mapping", keys)

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

    def call(self, path: str, obj: Object, branch: Branch | None, apart: bool) -> None:
        """A tensor, plain data in disguise, a module, or an instance of an unknown class."""
        for _ in range(_WRAPPED):
            found = self.rebuilder.rebuild(obj)
            if found is not None:
                self.rebuilt(path, found, apart)
                return
            self.charge(obj, *obj.args)
            node = simplify(obj)
            if node is obj:
                self.instance(path, obj, branch, apart)
                return
            if type(node) in _CONTAINERS:
                self.keep.append(node)
                if obj.state is not None:
                    self.attributes(path, obj)
                self.container(path, node, id(obj), branch, apart)
                return
            if type(node) is not Object:
                self.leaf(path, node)
                return
            self.keep.append(node)
            obj = node
        raise CkptError("over-budget", f"a value is wrapped more than {_WRAPPED} times")

    def attributes(self, path: str, obj: Object) -> None:
        """Attributes of a dict: the metadata of a state dict, or others, which are no part of it."""
        rest = []
        for key, value in attributes(obj).entries():
            if key in (VERSIONS, METADATA):
                self.charge(value)
                self.tree.attributes.setdefault(path, {})[key] = value
            elif isinstance(key, str):
                rest.append((key, value))
        if rest:
            self.start(rest, path, -id(obj), None, apart=True)

    def instance(self, path: str, obj: Object, branch: Branch | None, apart: bool) -> None:
        """A module, or an object of an unknown class."""
        if self.on_path & {id(obj), -id(obj)}:
            self.tree.leaves.append(Leaf(path, "cycle"))
            return
        state = {key: value for key, value in attributes(obj).entries() if isinstance(key, str)}
        inner = state.get(_TRANSPARENT.get(obj.name, ""))
        plain = type(inner) in SCALARS
        self.tree.leaves.append(Leaf(path, obj.type, inner if plain else None, opaque=True))
        if type(inner) in _CONTAINERS:
            self.charge(inner)
            self.container(path, inner, id(obj), branch, apart)
        elif inner is None or not plain:
            self.charge(*(state.get(part) for part in PARTS))
            found = convolution(obj) or module_members(obj, state)
            if found is None:
                kind: Kind = "mapping" if obj.pairs else "object"
                self.start(_parts(obj), path, id(obj), branch, apart, kind, packed=is_packed(obj))
                return
            self.start([(m.name, m.value) for m in found if not m.kind], path, -id(obj), None, apart=True)
            self.start([(m.name, m.value) for m in found if m.kind], path, id(obj), branch, apart, "module")

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
        packed: bool = False,
    ) -> None:
        if identity in self.on_path:
            self.tree.leaves.append(Leaf(path, "cycle"))
            return
        if len(self.stack) >= self.budgets.nesting:
            raise CkptError("over-budget", f"values are nested more than {self.budgets.nesting} deep")
        self.on_path.add(identity)
        made = None
        if not apart and (root or len(self.stack) < _BRANCHES):
            made = self.branch(path, branch, kind, keys)
        prefix = f"{path}." if path else ""
        tensors = "buffer" if kind == "module" else ""  # parameters say themselves that they are
        packed = packed or (bool(self.stack) and self.stack[-1].packed)
        self.stack.append(_Frame(iter(children), prefix, identity, made, apart, tensors, packed))

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
            self.tree.absent.append((path, f"{found.type}{shape}", apart))
        elif found is not None:
            for suffix, tensor in found.tensors:
                self.put(f"{path}.{suffix}" if path and suffix else path or suffix, tensor, apart)
            if found.attributes is not None:
                self.keep.append(found.attributes)
                self.place(path, found.attributes, None, True)

    def put(self, path: str, tensor: Tensor, apart: bool) -> None:
        path = path or LONE
        if self.stack and self.stack[-1].packed:
            tensor = noted(tensor, "part of an object of C++", "packed-as-parts")
        if apart:
            self.tree.apart.append((path, tensor))
        else:
            self.tree.names.append(path)
            self.tree.tensors.append(tensor)


_CONTAINERS: dict[type, str] = {Dict: "dict", list: "list", tuple: "tuple", Set: "set"}

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


def _contents(node: object) -> list[Any]:
    """What a node holds directly, as the lists that hold it."""
    if type(node) is Object:
        state = node.state if type(node.state) is tuple else (node.state,)
        parts = (node.args, node.items, node.pairs, *state[:2])
        return [part for part in parts if type(part) in _CONTAINERS]
    return [node] if type(node) in _CONTAINERS else []


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
