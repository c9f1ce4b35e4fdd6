"""From the value of a pickle to what a TensorGraph needs: the one entry for every container.

    refs = {}                                       # key → StorageRef, one per storage
    unpickled = machine.load(data, persistent=…)    # turns ids (refs.storage_id) into StorageRefs
    …                                               # a legacy stream now fills in StorageRef.storage
    assembly = assemble(unpickled.value, options, label=file, nested=…)

`nested(bytes)` returns the value of a legacy torch file held in a pickle (`torch.storage._load_from_bytes`), its
StorageRefs over `MemoryStorage`. TorchScript, which knows from its code what is in the state dict, calls
`assemble_attributes` instead.
"""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Leaf, Section
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.pytorch import sections
from ckptkit.format.pytorch.globals import SCALARS, entries
from ckptkit.format.pytorch.rebuild import Rebuilder
from ckptkit.format.pytorch.refs import shortened
from ckptkit.format.pytorch.tree import LONE, METADATA, VERSIONS, Branch, Tree, flatten, flatten_attributes

_NAMED = 3  # names that a note lists
_INNER = 100  # values of one module's metadata that are looked at; torch writes one


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of a TensorGraph: see there. `section` is the dotted path of the section that was selected."""

    tensors: dict[str, Tensor]
    section: str
    sections: tuple[Section, ...]
    objects: tuple[Leaf, ...]
    metadata: dict[str, str]
    findings: tuple[Finding, ...]


def assemble(
    value: object,
    options: ReadOptions,
    *,
    label: Hashable = None,
    nested: Callable[[bytes], object] | None = None,
) -> Assembly:
    """Flatten the value of a pickle and select the section that the options ask for.

    Args:
        label: what tells data held in this pickle from that of others; the file.
        nested: value of a torch file given as bytes; without it such files within the pickle are refused.

    Raises CkptError `ambiguous-section`, `section-unknown`, `name-collision`, and what `flatten` raises.
    """
    return _select(flatten(value, Rebuilder(label, nested), options.budgets), options)


def assemble_attributes(
    attributes: Iterable[tuple[str, object, str]], options: ReadOptions, *, label: Hashable = None
) -> Assembly:
    """As `assemble`, for a module whose members are known: (dotted path, value, kind) each; the kind is parameter,
    buffer, or "" for what is not in the state dict."""
    return _select(flatten_attributes(attributes, Rebuilder(label), options.budgets), options)


def _select(tree: Tree, options: ReadOptions) -> Assembly:
    wanted = options.section
    chosen, candidates = sections.choose(tree.root)
    if wanted is None and candidates and options.ambiguous != "all":
        raise sections.ambiguous(candidates)
    everything = wanted == "all" or (wanted is None and bool(candidates))
    shown = sections.listed(tree, chosen, candidates)
    notes: list[Finding] = []
    if everything:
        prefix, pairs = "", [*zip(tree.names, tree.tensors, strict=True), *tree.apart]
        if wanted is None:
            notes.append(sections.ambiguity(candidates))
    elif wanted is not None:
        prefix, pairs = wanted, _below(tree, wanted)
    else:
        prefix, pairs = chosen.path, _within(tree, chosen)
        notes += sections.findings(tree, chosen, shown)
    if not everything:
        notes += sections.outside(tree, shown, prefix)
    tensors = dict(pairs)
    if len(tensors) != len(pairs):
        raise _collision(pairs)
    notes += _absent(tree, prefix, everything)
    leaves = tree.leaves
    if tree.apart and not everything:
        stored = {tensor.storage for tensor in tensors.values()}
        apart = [(name, tensor) for name, tensor in tree.apart if tensor.storage not in stored]
        leaves = leaves + [
            Leaf(name, f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]") for name, tensor in apart
        ]
        notes += _apart([name for name, _ in apart])
    return Assembly(tensors, prefix, shown, tuple(leaves), _metadata(tree, prefix), tuple(notes))


def _absent(tree: Tree, prefix: str, everything: bool) -> list[Finding]:
    """Tensors without data that belong to what was selected: no writer can carry them."""
    below = f"{prefix}." if prefix else ""
    found = [
        (path, what)
        for path, what, apart in tree.absent
        if everything or ((path == prefix or path.startswith(below)) and not apart)
    ]
    if not found:
        return []
    path, what = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return [Finding("tensor-absent", "warning", path, f"{what} was saved without data{more}")]


def _apart(names: list[str]) -> list[Finding]:
    """Tensors that are no part of a state dict: attributes, buffers that do not persist, constants of code."""
    if not names:
        return []
    what = "a tensor stands" if len(names) == 1 else f"{len(names)} tensors stand"
    some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    message = f"{what} outside the state dict: {some}"
    return [Finding("tensors-outside", "note", names[0], message, "--section all reads everything")]


def _within(tree: Tree, branch: Branch) -> list[tuple[str, Tensor]]:
    names, tensors = tree.names, tree.tensors
    if branch is not tree.root:
        names, tensors = names[branch.start : branch.stop], tensors[branch.start : branch.stop]
        cut = len(branch.path) + 1
        names = [name[cut:] for name in names]
    return list(zip(names, tensors, strict=True))


def _below(tree: Tree, section: str) -> list[tuple[str, Tensor]]:
    """The tensors of a section named by the user, or the one of that name."""
    prefix = f"{section}."
    cut = len(prefix)
    for pairs in (zip(tree.names, tree.tensors, strict=True), tree.apart):
        found = [
            (name[cut:] or LONE, tensor)
            for name, tensor in pairs
            if name.startswith(prefix) or name == section
        ]
        if found:
            return found
    known = [branch.path for branch in tree.root.branches if branch.count]
    raise CkptError(
        "section-unknown",
        f"the checkpoint has no section {section!r} with tensors",
        None,
        f"there is {', '.join([*known[:20], 'all'])}" if known else "the whole checkpoint is one section",
    )


def _collision(pairs: list[tuple[str, Tensor]]) -> CkptError:
    counts = Counter(name for name, _ in pairs)
    twice = next(name for name, count in counts.items() if count > 1)
    return CkptError(
        "name-collision", "two tensors of the checkpoint have the same dotted name", shortened(twice)
    )


def _metadata(tree: Tree, prefix: str) -> dict[str, str]:
    """Metadata of the state dicts at or below `prefix`; module versions of nested ones below their own path."""
    versions: dict[str, Any] = {}
    found: dict[str, str] = {}
    for path, attributes in tree.attributes.items():
        if prefix and path != prefix and not path.startswith(f"{prefix}."):
            continue
        inner = path[len(prefix) + 1 :] if prefix else path
        for key, value in attributes.items():
            if key == VERSIONS:
                for name, entry in (_plain(value) or {}).items():
                    versions[f"{inner}.{name}".strip(".") if inner else name] = entry
            elif key == METADATA and path == prefix:
                plain = _plain(value) or {}
                found |= {k: v for k, v in plain.items() if isinstance(v, str)}
    if versions:
        found[VERSIONS] = json.dumps(versions, ensure_ascii=False, separators=(",", ":"))
    return found


def _plain(node: object) -> dict[str, Any] | None:
    """A dict of plain values, or of dicts of them; what is neither is left out."""
    found = entries(node)
    if found is None:
        return None
    plain: dict[str, Any] = {}
    for name, value in found.items():
        if type(value) in SCALARS:
            plain[name] = value
        else:
            inner = entries(value, _INNER)
            if inner is not None:
                plain[name] = {k: v for k, v in inner.items() if type(v) in SCALARS}
    return plain
