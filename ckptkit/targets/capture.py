"""The contract that a checkpoint fits exactly: layers folded, recurring sizes named."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.names import Branch, braces, fold
from ckptkit.core.tensor import Tensor
from ckptkit.targets.contract import Contract, Entry
from ckptkit.targets.pattern import escape, expand
from ckptkit.targets.target import Dim, Size, Spec, weights

T = TypeVar("T", bound=Hashable)

_SMALLEST = 24  # sizes below are written as numbers: a 3 is rarely the same thing twice
_RANGE = re.compile(r"\{(\d+\.\.\d+)\}")
_LETTERS = "ijkmn"
_EMBEDDING = re.compile(
    r"(?:.*[._])?(?:embed_tokens|word_embeddings?|wte|tok_embeddings|token_embedding|embed_in|shared)\.weight"
)
_POSITIONS = re.compile(r"(?:.*[._])?(?:position_embeddings?|embed_positions|wpe|positions_embed)\.weight")
_HEAD = re.compile(r"(?:.*\.)?(?:fc|classifier|head|heads\.head|classifier\.\d+)\.(?:weight|bias)")


def capture(graph: TensorGraph) -> Contract:
    """The contract. Its dimensions are the sizes of embeddings and heads, where these are unmistakable."""
    tensors = weights(graph)
    named, classes = _dimensions(tensors)
    rows = [(name, _spec(name, tensor, named, classes)) for name, tensor in tensors.items()]
    dimensions = {label: size for size, label in named.items()} | ({"classes": classes} if classes else {})
    ties = tuple(
        tuple(map(escape, group))
        for group in graph.storages()
        if len(group) > 1 and set(group) <= tensors.keys()
    )
    return replace(folded(rows), dimensions=dimensions, ties=ties)


def folded(rows: Iterable[tuple[str, Spec]]) -> Contract:
    """The contract that expects these names as they are specified; names must differ."""
    lines = list(patterns(rows))
    ranges = _ranges(pattern for pattern, _ in lines)
    names = {f"{{{numbers}}}": f"{{{letter}}}" for letter, numbers in ranges.items()}
    entries = []
    for pattern, spec in lines:
        for written, name in names.items():
            if pattern.count(written) == 1:
                pattern = pattern.replace(written, name)
        entries.append(Entry(pattern, spec))
    return Contract(ranges=ranges, entries=tuple(entries))


def _dimensions(tensors: Mapping[str, Tensor]) -> tuple[dict[int, str], int]:
    """Size → name for those that mean the same wherever they stand, and the number of classes (0 for none)."""
    sizes: dict[str, int] = {}
    classes = 0
    for name, tensor in tensors.items():
        shape = tensor.shape
        if len(shape) == 2 and _EMBEDDING.fullmatch(name):
            sizes.setdefault("vocab", shape[0])
            sizes.setdefault("d", shape[1])
        elif len(shape) == 2 and _POSITIONS.fullmatch(name):
            sizes.setdefault("positions", shape[0])
        elif shape and _HEAD.fullmatch(name):
            classes = shape[0]
    taken = Counter(sizes.values())
    return {size: name for name, size in sizes.items() if taken[size] == 1 and size >= _SMALLEST}, classes


def _spec(name: str, tensor: Tensor, named: Mapping[int, str], classes: int) -> Spec:
    shape: list[Size] = [Dim(named[size]) if size in named else size for size in tensor.shape]
    if classes and shape and tensor.shape[0] == classes and _HEAD.fullmatch(name):
        shape[0] = Dim("classes")
    return Spec((tensor.dtype.name,), tuple(shape))


def patterns(rows: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """(name, signature) rows as patterns of names that have one signature; names must differ."""
    yield from _lines(fold(rows), "", ())


def _lines(tree: Iterable[Branch], before: str, within: tuple[Branch, ...]) -> Iterator[tuple[str, Any]]:
    """Each leaf as a pattern; one that cannot be written as a pattern is written name by name."""
    for branch in tree:
        pattern = before + _label(branch)
        if branch.children:
            yield from _lines(branch.children, pattern, (*within, branch))
            continue
        names = [""]
        for step in (*within, branch):
            names = [name + path for name in names for path in step.paths]
        if _stands_for(pattern, names):
            yield pattern, branch.signature
        else:
            yield from ((escape(name), branch.signature) for name in names)


def _stands_for(pattern: str, names: list[str]) -> bool:
    """Whether the pattern means these names; not so where braces or commas of the names themselves mix in."""
    try:
        return sorted(expand(pattern, {})) == sorted(names)
    except CkptError:
        return False


def _label(branch: Branch) -> str:
    return "".join(escape(part[0]) if len(part) == 1 else braces(part) for part in branch.parts)


def _ranges(patterns: Iterable[str]) -> dict[str, str]:
    """Letter → numbers, for ranges that several lines have."""
    counts = Counter(match for pattern in patterns for match in dict.fromkeys(_RANGE.findall(pattern)))
    common = [numbers for numbers, count in counts.most_common() if count > 1]
    return dict(zip(_LETTERS, common, strict=False))
