"""Splitting a checkpoint over several files, and the index that says which tensor is where.

The split is huggingface_hub's: greedy, in graph order, counting tensor bytes; a tensor above the limit gets a
file of its own. The index is written as transformers writes it: keys sorted, two spaces, ASCII, a newline.
"""

import json
from collections.abc import Mapping, Sequence

from ckptkit.core.plan import OutputFile, Piece
from ckptkit.core.tensor import Tensor


def split(tensors: Mapping[str, Tensor], limit: int | None) -> list[list[str]]:
    """The names of each file, in order; all in one where there is no limit (bytes of tensors per file)."""
    if limit is None:
        return [list(tensors)]
    shards: list[list[str]] = []
    current: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        nbytes = tensor.nbytes
        if nbytes > limit:
            shards.append([name])
            continue
        if size + nbytes > limit:
            shards.append(current)
            current, size = [], 0
        current.append(name)
        size += nbytes
    if current or not shards:
        shards.append(current)
    return shards


def shard_names(stem: str, suffix: str, count: int) -> list[str]:
    """`model-00001-of-00003.safetensors` and its fellows."""
    return [f"{stem}-{n:05}-of-{count:05}{suffix}" for n in range(1, count + 1)]


def index(path: str, shards: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor]) -> OutputFile:
    """The index file: file name → names it holds; `tensors` are those whose bytes are counted. Lists what exists."""
    text = json.dumps(
        {
            "metadata": {
                "total_parameters": sum(t.size for t in tensors.values()),
                "total_size": sum(t.nbytes for t in tensors.values()),
            },
            "weight_map": {name: shard for shard, names in shards.items() for name in names},
        },
        indent=2,
        sort_keys=True,
    )
    data = f"{text}\n".encode("ascii")
    return OutputFile(path, len(data), (Piece(0, len(data), data),))
