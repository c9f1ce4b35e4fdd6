"""The arguments of torch's records, checked, and what records are rebuilt to."""

from dataclasses import dataclass, replace
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor
from ckptkit.format.pytorch.nodes import Dict, Global, Object, untagged
from ckptkit.format.pytorch.refs import invalid, short

RANK = 100  # dimensions of a tensor; torch's own kernels stop at 64
_ATTRIBUTES = 100  # of a tensor subclass or its metadata


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What stands at one place: tensors by suffix ("" is the place itself), and attributes that came with them."""

    tensors: tuple[tuple[str, Tensor], ...]
    attributes: object = None


@dataclass(frozen=True, slots=True, eq=False)
class Absent:
    """A tensor without data: on the meta device, or not initialised when it was saved."""

    type: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None


Rebuilt = Tensor | Parts | Absent | None


def sizes(value: object) -> tuple[int, ...]:
    """Sizes or strides: a tuple, a list, or a torch.Size around one. What is in it is for `view` to check."""
    if type(value) is Object and value.name == ("torch", "Size") and len(value.args) == 1:
        value = value.args[0]
    if type(value) is not tuple and type(value) is not list:
        raise invalid("sizes or strides are not a tuple")
    if len(value) > RANK:
        raise invalid(f"a tensor has {len(value)} dimensions")
    for n in value:
        if type(n) is not int or n < 0:
            raise CkptError("view-invalid", "sizes and strides must be counts")
    return tuple(value)


def pairs(shape: Any, strides: Any, start: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape and strides of float4 elements, given those of torch's pairs of them."""
    if type(start) is not int or len(shape) != len(strides):
        raise invalid("a tensor's start is not a count")
    if not shape:
        return (2,), (1,), start * 2
    if strides[-1] != 1 and shape[-1] > 1:
        raise CkptError("dtype-unsupported", "float4 elements lie apart along the last dimension")
    return (*shape[:-1], shape[-1] * 2), (*(2 * s for s in strides[:-1]), 1), start * 2


def flags(metadata: object) -> dict[str, Any]:
    """The lazy bits of a tensor: {'conj': True}, {'neg': True}. Raises CkptError for any other metadata."""
    flags = {}
    metadata = untagged(metadata)
    if type(metadata) is not Dict:
        raise invalid("the metadata of a tensor is no dict")
    for key, value in metadata.entries():
        if not isinstance(key, str) or key not in {"conj", "neg"} or type(value) is not bool:
            raise invalid(f"a tensor carries the unknown bit {short(key)[:40]!r}")
        flags[key] = value
    return flags


def attributes_of(state: object) -> dict[str, Any]:
    """Attributes by name: a dict, or a pair of dicts of which the second holds slots."""
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    return {
        key: value
        for part in parts
        if type(part) is Dict and len(part) <= 2 * _ATTRIBUTES
        for key, value in part.entries()
        if isinstance(key, str)
    }


def with_attributes(inner: Rebuilt, state: object) -> Rebuilt:
    """The same with further attributes."""
    if not state or not isinstance(inner, Tensor | Parts):
        return inner
    if isinstance(inner, Tensor):
        return Parts((("", inner),), state)
    return Parts(inner.tensors, [inner.attributes, state] if inner.attributes else state)


def noted(tensor: Tensor, note: str, loss: str = "") -> Tensor:
    """The tensor with a note for people, and the code of what writing it as a plain tensor would lose."""
    return replace(tensor, note=note, loss=loss)


def text(node: object) -> str | None:
    """A str, or the str within a `_get_layout('torch.sparse_coo')`."""
    if type(node) is Object and node.name == ("torch.serialization", "_get_layout") and len(node.args) == 1:
        node = node.args[0]
    if type(node) is Global and node.module == "torch":
        return str(node)
    return node if isinstance(node, str) else None


def wrong_arguments(obj: Object) -> CkptError:
    return invalid(f"{short(obj.cls)} was not given what it takes")
