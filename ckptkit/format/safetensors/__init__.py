"""The safetensors format: `read` and `layout`."""

from ckptkit.format.safetensors.reader import read
from ckptkit.format.safetensors.writer import layout

__all__ = ["layout", "read"]
