"""Small graphs to apply rules to."""

from pathlib import Path
from typing import Any

import numpy as np

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.rules.ruleset import Rules


def names(*found: str, shape: tuple[int, ...] = (0,)) -> TensorGraph:
    """A graph with these names; tensors without bytes."""
    return TensorGraph({name: Tensor(DTYPES["uint8"], shape) for name in found}, Origin("x", "safetensors"))


def stored(folder: Path, arrays: dict[str, Any]) -> TensorGraph:
    """A graph whose tensors lie one after the other in a file."""
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    path.write_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values()))
    file = File.at(path)
    tensors = {}
    offset = 0
    for name, array in arrays.items():
        tensors[name] = Tensor(DTYPES[str(array.dtype)], array.shape, file, offset)
        offset += array.nbytes
    return TensorGraph(tensors, Origin(str(path), "safetensors", files=(file,)))


def codes(rules: Rules, graph: TensorGraph, **let: Any) -> list[str]:
    """The codes of what is wrong."""
    return [finding.code for finding in rules.check(graph, **let)]


def code_of(make: Any, *args: Any, **options: Any) -> str:
    try:
        make(*args, **options)
    except CkptError as error:
        return error.code
    return ""
