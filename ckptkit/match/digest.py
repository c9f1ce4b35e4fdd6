"""Content identity, the same in every format, order and layout.

A tensor's digest is BLAKE3 over: the ASCII text `ckptkit-1`, a zero byte, the canonical dtype name, a zero
byte, the dimensions as decimals joined by commas, a zero byte, then the elements row-major and little-endian,
sub-byte types packed low bits first. A checkpoint's digest is BLAKE3 over, for each name in the order of its
UTF-8 bytes, the length of the name as a little-endian 32-bit integer, the name, and the tensor's digest
(32 bytes). Bits count, not values: NaN payloads, −0.0 and bool bytes other than 0 and 1 make a difference.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ckptkit.core.tensor import Tensor

if TYPE_CHECKING:
    from blake3 import blake3


def tensor_hasher(tensor: Tensor) -> "blake3":
    """A hasher that has seen the tensor's dtype and shape and awaits its bytes, in order."""
    from blake3 import blake3

    shape = ",".join(map(str, tensor.shape))
    return blake3(f"ckptkit-1\0{tensor.dtype.name}\0{shape}\0".encode())


def tensor_digest(tensor: Tensor) -> str:
    """The tensor's digest, 64 hexadecimal digits. Reads all its bytes; raises what reading them raises."""
    hasher = tensor_hasher(tensor)
    for chunk in tensor.chunks():
        hasher.update(chunk)
    return hasher.hexdigest()


def combine(digests: Mapping[str, str]) -> str:
    """The checkpoint's digest from its tensors' digests by name."""
    from blake3 import blake3

    total = blake3()
    for name, digest in sorted((name.encode("utf-8", "surrogatepass"), d) for name, d in digests.items()):
        total.update(len(name).to_bytes(4, "little") + name + bytes.fromhex(digest))
    return total.hexdigest()
