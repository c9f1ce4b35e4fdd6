"""Which published model a checkpoint is, by its names and shapes; nothing where that is not certain."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ckptkit.core.tensor import Tensor
from ckptkit.targets.catalogue import OWN, Published, find
from ckptkit.targets.catalogue.index import fingerprint, load, plain

_NEARLY = 50  # a fiftieth: a vocabulary with some tokens more, or padded
_FOREIGN = 4  # tensors of an unknown head: at most one to so many of the body

Head = Literal["", "none", "other"]


class Difference(NamedTuple):
    """A dimension that is not as published; `published` is None where nothing is."""

    dimension: str
    found: int
    published: int | None


@dataclass(frozen=True, slots=True)
class Recognised:
    """A published model.

    Attributes:
        model: what it is.
        scheme: whose names it has, one of `ckptkit.targets.catalogue.SCHEMES`.
        differences: the dimensions that are not as published.
        head: `none` for a model saved without its outputs, `other` for outputs of its own, "" for published ones.
    """

    model: Published
    scheme: str
    differences: tuple[Difference, ...] = ()
    head: Head = ""


def recognise(family: str, tensors: Mapping[str, Tensor]) -> Recognised | None:
    """The model that the tensors are, of a family of names (`ResNet/torchvision`). None if none is certain."""
    for form in load()["forms"].get(family, ()):
        found = _recognise(form, tensors)
        if found is not None:
            return found
    return None


def _recognise(form: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Recognised | None:
    root = form["root"] if any(name.startswith(form["root"]) for name in tensors) else ""
    optional = set(form["optional"])
    prefixes = tuple(form["prefixes"])
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    count = 0
    for name, tensor in tensors.items():
        in_head = not name.startswith(root) or name.startswith(prefixes)
        part, key = (head, name) if in_head else (body, name.removeprefix(root))
        count += in_head
        if plain(key) not in optional:
            part[key] = tensor
    axes = form["axes"]
    names = form["bodies"].get(fingerprint(_shapes(body), axes))
    if names is None:
        return None
    known = form["heads"].get(fingerprint(_shapes(head), axes))
    if known is None and _FOREIGN * count > len(tensors):
        return None
    sizes = _sizes(axes, {**{key: tensors[root + key] for key in axes if root + key in tensors}, **head})
    model = _choose([model for name in names if (model := find(name)) is not None], sizes)
    if model is None:
        return None
    differences = tuple(
        Difference(name, size, None if name in OWN else model.sizes[name])
        for name, size in sizes.items()
        if name in OWN or size != model.sizes[name]
    )
    whole = known is not None or not form["heads"] or (form["root"] and not root)
    state: Head = "" if whole or (differences and head) else "other" if head else "none"
    return Recognised(model, form["scheme"], differences, state)


def _shapes(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((name, tensor.shape) for name, tensor in tensors.items())


def _sizes(axes: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The dimensions that may differ, as far as all tensors that have them agree."""
    found: dict[str, set[int]] = {}
    for key, places in axes.items():
        tensor = tensors.get(key)
        if tensor is None:
            continue
        for axis, (dimension, factor) in places.items():
            if int(axis) >= len(tensor.shape) or tensor.shape[int(axis)] % factor:
                found.setdefault(dimension, set()).update((0, 1))  # no size at all
            else:
                found.setdefault(dimension, set()).add(tensor.shape[int(axis)] // factor)
    return {name: sizes.pop() for name, sizes in found.items() if len(sizes) == 1}


def _choose(models: list[Published], sizes: Mapping[str, int]) -> Published | None:
    """The one that has these sizes, or nearly; where all have the same title, the first."""
    exact = [m for m in models if all(name in OWN or m.sizes[name] == size for name, size in sizes.items())]
    if exact:
        return exact[0]
    vocabulary = sizes.get("vocab")
    if vocabulary is not None:
        same = [m for m in models if _NEARLY * abs(m.sizes["vocab"] - vocabulary) <= m.sizes["vocab"]]
        models = same or models
    return models[0] if len({model.title for model in models}) == 1 else None
