"""Rules that bring tensors to what a target expects, one for each cause that can be undone.

They come from names and shapes, so they are tried on the manifest before anyone is told of them. What shapes
cannot tell is not offered: which of two orders a fused tensor has, whether a square matrix is transposed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.match.fit.compare import Fit, fit
from ckptkit.targets.target import Target

Shape = tuple[int, ...]

_LONGEST = 2_000  # characters of rules that one command is given
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_LETTERS = "ijkmn"
_PLAIN = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)  # what YAML reads as it stands
_LOOKUP = re.compile(
    r"emb|wte|wpe|shared|position"
)  # matrices whose rows are looked up, alike in every library
_PART = re.compile(r"(?<=[._])(weight|bias)$")
# Fused tensors whose parts lie behind one another; others (query_key_value) interleave them by head.
IN_ORDER = ("qkv", "qkv_proj", "in_proj", "Wqkv", "gate_up_proj")


@dataclass(frozen=True, slots=True)
class Mend:
    """One rule: the names it takes, the names it makes, and the rest of it (`{"ops": ["transpose"]}`)."""

    takes: tuple[str, ...]
    makes: tuple[str, ...]
    does: Mapping[str, Any] = field(default_factory=dict)
    tie: bool = False


def renamed(old: str, new: str) -> Mend:
    """Another name."""
    return Mend((old,), (new,))


def tied(name: str, kept: str) -> Mend:
    """A second name of what is there."""
    return Mend((kept,), (name,), tie=True)


def operated(name: str, *operations: object) -> Mend:
    """Other values or another shape under the same name."""
    return Mend((name,), (name,), {"ops": list(operations)})


def split(whole: str, shape: Shape, parts: Mapping[str, Shape]) -> Mend | None:
    """One tensor into those named, if their rows together are its rows."""
    sizes = _rows(shape, list(parts.values()))
    if sizes is None:
        return None
    how = {"dim": 0} if len(set(sizes)) == 1 else {"dim": 0, "sizes": sizes}
    return Mend((whole,), tuple(parts), {"split": how})


def concat(parts: Mapping[str, Shape], whole: str, shape: Shape) -> Mend | None:
    """As `split`, the other way."""
    fits = _rows(shape, list(parts.values())) is not None
    return Mend(tuple(parts), (whole,), {"concat": {"dim": 0}}) if fits else None


def _rows(whole: Shape, parts: Sequence[Shape]) -> list[int] | None:
    if len(whole) not in (1, 2) or any(part[1:] != whole[1:] or not part for part in parts):
        return None
    sizes = [part[0] for part in parts]
    return sizes if sum(sizes) == whole[0] else None


def reshaped(name: str, shape: Shape, expected: Shape) -> Mend:
    """The same elements in another shape."""
    return operated(name, {"reshape": {"from": list(shape), "to": list(expected)}})


def permuted(name: str, shape: Shape, expected: Shape) -> Mend | None:
    """A TensorFlow kernel (height, width, in, out) as torch keeps it; a depthwise one (height, width, in, 1), too."""
    for order in ([3, 2, 0, 1], [2, 3, 0, 1], [2, 1, 0]):
        if len(order) == len(shape) and tuple(shape[axis] for axis in order) == expected:
            return operated(name, {"permute": order})
    return None


def resampled(name: str, shape: Shape, expected: Shape) -> Mend | None:
    """Position embeddings of an image (1, extra + rows², width) on another square grid; longer ones are cut."""
    if len(shape) == 3:
        for extra in (1, 0, 2):
            old, new = isqrt(max(0, shape[1] - extra)), isqrt(max(0, expected[1] - extra))
            if old > 1 and new > 1 and old**2 + extra == shape[1] and new**2 + extra == expected[1]:
                grids = {"from": [old, old], "to": [new, new]}
                return operated(name, {"resize_grid": {"dim": 1, "skip": extra, **grids}})
        return None
    if len(shape) == 2 and expected[0] < shape[0]:
        return operated(name, {"slice": {"dim": 0, "stop": expected[0]}})
    return None


def text(mends: Iterable[Mend], *, folded: bool) -> str:
    """The rules as `--rules` takes them; folded, a rule stands for every layer, and for weights and biases."""
    if folded:
        mends = _by_part([_by_layer(mend) for mend in mends])
    else:
        mends = [_templates(mend, (*map(_escaped, mend.takes), *map(_escaped, mend.makes))) for mend in mends]
    rules = list(dict.fromkeys(_written(_rule(mend)) for mend in mends))
    return rules[0] if len(rules) == 1 else f"[{', '.join(rules)}]"


def tried(
    graph: TensorGraph, target: Target, before: Sequence[str], mends: Sequence[Mend]
) -> tuple[list[str], Fit]:
    """The rules that fit best, those of `before` first, and the fit that they give.

    Raises CkptError where not even those of `before` apply.
    """
    from ckptkit.rules.follow import follow

    rules = list(before)
    best = fit(follow(graph, rules).graph, target)
    for folded in (True, False) if mends else ():
        written = text(mends, folded=folded)
        if len(written) > _LONGEST:
            continue
        try:
            found = fit(follow(graph, [*before, written]).graph, target)
        except CkptError:  # they take what others take, or apply to more than they should
            continue
        if amiss(found) < amiss(best):
            rules, best = [*before, written], found
    return rules, best


def amiss(found: Fit) -> int:
    """How many differences there are."""
    return len(found.missing) + len(found.unexpected) + len(found.mismatched)


def _rule(mend: Mend) -> dict[str, Any]:
    if mend.tie:
        return {"tie": mend.makes[0], "to": mend.takes[0]}
    takes, makes = (names[0] if len(names) == 1 else list(names) for names in (mend.takes, mend.makes))
    return {"from": takes, "to": makes, **mend.does}


def _written(value: Any) -> str:
    """YAML on one line, in double quotes where quotes are needed: a shell's are single."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value) if _PLAIN.fullmatch(str(value)) else json.dumps(value, ensure_ascii=False)


def _templates(mend: Mend, names: Sequence[str]) -> Mend:
    return Mend(tuple(names[: len(mend.takes)]), tuple(names[len(mend.takes) :]), mend.does, mend.tie)


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _by_layer(mend: Mend) -> Mend:
    """Numbers of layers as holes, where all its names have the same."""
    names = [name.split(".") for name in (*mend.takes, *mend.makes)]
    numbers = [[segment for segment in name if _NUMBER.fullmatch(segment)] for name in names]
    same = all(found == numbers[0] for found in numbers) and len(numbers[0]) <= len(_LETTERS)
    if mend.tie or not same:
        return _templates(mend, [_escaped(".".join(name)) for name in names])
    templates = []
    for name in names:
        holes = iter(_LETTERS)
        parts = (f"{{{next(holes)}}}" if _NUMBER.fullmatch(part) else _escaped(part) for part in name)
        templates.append(".".join(parts))
    return _templates(mend, templates)


def _by_part(mends: Sequence[Mend]) -> Iterator[Mend]:
    """A weight's rule and its bias' as one."""
    groups: dict[tuple[tuple[str, ...], str], list[Mend]] = {}
    for mend in mends:
        bare = tuple(_PART.sub("{p}", name) for name in (*mend.takes, *mend.makes))
        groups.setdefault((bare, repr((mend.tie, mend.does))), []).append(mend)
    for (bare, _), members in groups.items():
        parts = dict.fromkeys(match[1] for mend in members for match in _PART.finditer(mend.takes[0]))
        once = all(name.count("{p}") == 1 for name in bare)
        if len(parts) == 2 and once and not members[0].tie:
            first = bare[0].replace("{p}", f"{{p:{'|'.join(parts)}}}")
            yield _templates(members[0], [first, *bare[1:]])
        else:
            yield from members


def doubtful(mends: Iterable[Mend], tensors: Mapping[str, Tensor]) -> bool:
    """Whether square matrices may need to be transposed as well: every other matrix does, and shapes cannot tell."""
    turned = {mend.takes[0] for mend in mends if mend.does.get("ops") == ["transpose"]}
    if not turned:
        return False
    matrices = [
        name for name, tensor in tensors.items() if len(tensor.shape) == 2 and not _LOOKUP.search(name)
    ]
    square = {name for name in matrices if len(set(tensors[name].shape)) == 1}
    return bool(square) and turned >= set(matrices) - square
