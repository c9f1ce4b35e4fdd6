"""A published model in words, and whether a checkpoint is another one than its target."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckptkit.core.graph import TensorGraph
from ckptkit.match.schemes import Naming, naming

if TYPE_CHECKING:
    from ckptkit.targets.catalogue.recognition import Difference, Recognised
    from ckptkit.targets.target import Target

_SAID = {
    "channels": "{} input channels",
    "classes": "classifier has {} outputs",
    "labels": "classifier has {} outputs",
    "positions": "{} positions",
    "vocab": "vocabulary of {}",
}
_STATED = ("arch", "architecture", "model", "model_name")  # what scripts call it: torch's own, timm's, others
_HEADS = {"none": "without its head", "other": "with another head", "": ""}


def described(naming: Naming) -> str:
    """`ResNet-50, torchvision names, classifier has 10 outputs instead of 1000`; "" for no published model."""
    known = naming.known
    if known is None:
        return ""
    return ", ".join([known.model.title, f"{naming.family} names", *differences(known)])


def recognise(graph: TensorGraph) -> "Recognised | None":
    """The published model that a checkpoint is, by its names and shapes; None where that is not certain.

    Every tensor must be there with its published shape, but for the outputs, the dimensions that may differ
    (vocabulary, positions, classes), and what wrappers put before the names.
    """
    return naming(graph.tensors).known


def stated(graph: TensorGraph) -> str:
    """The published model that a training script wrote beside the weights (`arch: resnet50`); "" for none."""
    for leaf in graph.objects:
        if leaf.path.rpartition(".")[2] in _STATED and isinstance(leaf.value, str) and not leaf.opaque:
            from ckptkit.targets import catalogue

            model = catalogue.find(leaf.value)
            if model is not None:
                return model.name
    return ""


def differences(known: "Recognised") -> Iterator[str]:
    """How it differs from the published one, each in a few words."""
    if known.head:
        yield _HEADS[known.head]
    yield from map(_said, known.differences)


def other_model(graph: TensorGraph, target: "Target") -> str:
    """The published model that the checkpoint is, where that is not the one of the target; "" where nothing is sure."""
    if target.kind != "architecture":
        return ""
    from ckptkit.targets import catalogue

    found = naming(graph.tensors)
    wanted = catalogue.find(target.path.partition("@")[0])
    if found.known is None or wanted is None or found.known.model.title == wanted.title:
        return ""
    return described(found)


def other_family(graph: TensorGraph, target: "Target") -> str:
    """Whose names the checkpoint has, where they are no names of the target's family; "" where that is not sure."""
    if target.kind != "architecture":
        return ""
    from ckptkit.targets import catalogue

    found = naming(graph.tensors)
    wanted = catalogue.find(target.path.partition("@")[0])
    if not found.scheme or wanted is None:
        return ""
    scheme = found.scheme.partition("-")[0]
    if any(scheme == name.partition("-")[0] for name in catalogue.families(wanted)):
        return ""
    return f"{found.scheme} ({found.family} names)"


def _said(difference: "Difference") -> str:
    said = _SAID.get(difference.dimension, f"{difference.dimension} {{}}").format(difference.found)
    return said if difference.published is None else f"{said} instead of {difference.published}"
