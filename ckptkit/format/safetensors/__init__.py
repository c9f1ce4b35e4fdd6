"""The safetensors format: `read`, `layout` and the judgement of the reference library."""

from ckptkit.format.safetensors.reader import read
from ckptkit.format.safetensors.writer import layout

__all__ = ["layout", "open_with_reference", "read"]


def open_with_reference(path: str) -> None:
    """Let the safetensors library open a written file; an index beside shards is not its business."""
    if not path.endswith(".safetensors"):
        return
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - this is no mapping
            file.get_slice(name).get_shape()
