"""Small graphs in memory."""

from collections.abc import Mapping
from math import prod

from ckptkit.core.dtypes import dtype
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view


def graph(
    shapes: Mapping[str, tuple[int, ...]],
    ties: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> TensorGraph:
    """A graph of zeros, float32 where `dtypes` does not say; tied names share their storage."""
    made: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        kind = dtype((dtypes or {}).get(name, "float32"))
        strides = [1] * len(shape)
        for axis in range(len(shape) - 1, 0, -1):
            strides[axis - 1] = strides[axis] * shape[axis]
        made[name] = view(
            MemoryStorage(bytes(kind.nbytes(prod(shape))), number), kind, shape, tuple(strides), 0
        )
    made |= {name: made[kept] for name, kept in (ties or {}).items()}
    return TensorGraph(made, Origin("x", "safetensors"), metadata=metadata or {})
