"""Content identity, the same in every format, order and layout.

A tensor's digest is BLAKE3 over: the ASCII text `ckptkit-1`, a zero byte, the canonical dtype name, a zero
byte, the dimensions as decimals joined by commas, a zero byte, then the elements row-major and little-endian,
sub-byte types packed low bits first and the last byte padded with zeros. A checkpoint's digest is BLAKE3 over,
for each name in the order of its UTF-8 bytes, the length of the name as a little-endian 32-bit integer, the name,
and the tensor's digest (32 bytes); its nameless digest over the tensors' digests alone, in ascending order. Bits
count, not values: NaN payloads, −0.0 and bool bytes other than 0 and 1 make a difference.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ckptkit.core.tensor import Buffer, Tensor
from ckptkit.match.reading import SEGMENT, WORKERS, Progress, Window, shared

if TYPE_CHECKING:
    from blake3 import blake3


def tensor_hasher(tensor: Tensor, threads: int = 1) -> "blake3":
    """A hasher that has seen the tensor's dtype and shape and awaits its bytes, in order."""
    from blake3 import blake3

    shape = ",".join(map(str, tensor.shape))
    return blake3(f"ckptkit-1\0{tensor.dtype.name}\0{shape}\0".encode(), max_threads=threads)


def tensor_digest(tensor: Tensor) -> str:
    """The tensor's digest, 64 hexadecimal digits. Reads all its bytes; raises what reading them raises."""
    hasher = tensor_hasher(tensor)
    for chunk in whole_bytes(tensor, tensor.chunks()):
        hasher.update(chunk)
    return hasher.hexdigest()


def digests(tensors: Mapping[str, Tensor], progress: Progress | None = None) -> dict[str, str]:
    """Name → digest, in the order of the names given; tied tensors are read once. Two threads share the work.

    Raises what reading the tensors raises.
    """
    groups: dict[Hashable, Tensor] = {}
    keys: dict[str, Hashable] = {}
    for name, tensor in tensors.items():
        place = tensor.storage
        key = keys[name] = ("empty", tensor.dtype.name, tensor.shape) if place is None else place
        groups.setdefault(key, tensor)
    items = [_Item(key, tensor, tensor.nbytes) for key, tensor in groups.items()]
    total = sum(item.nbytes for item in items)
    found: dict[Hashable, str] = {}
    lock = threading.Lock()

    @contextmanager
    def worker() -> Iterator[Callable[[list[_Item]], None]]:
        with Window() as window:

            def run(batch: list[_Item]) -> None:
                for key, tensor, nbytes in batch:
                    # What outweighs all the rest would keep one thread busy alone.
                    alone = nbytes > max(total // 2, SEGMENT)
                    hasher = tensor_hasher(tensor, WORKERS if alone else 1)
                    plain = tensor.source is None and not alone
                    chunks = window.pieces(tensor, 0, nbytes) if plain else tensor.chunks()
                    for chunk in whole_bytes(tensor, chunks):
                        hasher.update(chunk)
                        if progress is not None:
                            with lock:
                                progress(len(chunk))
                    found[key] = hasher.hexdigest()

            yield run

    shared(_batches(items), worker, total)
    return {name: found[key] for name, key in keys.items()}


class _Item(NamedTuple):
    key: Hashable
    tensor: Tensor
    nbytes: int


def _batches(items: list[_Item]) -> Iterator[list[_Item]]:
    """Large tensors one by one, the largest first, so that no thread is left with one at the end; then the small
    ones together, in the order of the file."""
    large = [item for item in items if item.nbytes >= SEGMENT]
    yield from ([item] for item in sorted(large, key=lambda item: -item.nbytes))
    batch: list[_Item] = []
    taken = 0
    for item in items:
        if item.nbytes < SEGMENT:
            batch.append(item)
            taken += item.nbytes
            if taken >= SEGMENT:
                yield batch
                batch, taken = [], 0
    yield batch


def whole_bytes(tensor: Tensor, chunks: Iterable[Buffer]) -> Iterable[Buffer]:
    """The chunks of a tensor; where its last byte is not full, with the bits above the last element zero."""
    used = tensor.size * tensor.dtype.bits % 8
    return chunks if not used else _padded(chunks, tensor.nbytes, (1 << used) - 1)


def _padded(chunks: Iterable[Buffer], nbytes: int, mask: int) -> Iterator[Buffer]:
    for chunk in chunks:
        nbytes -= len(chunk)
        yield chunk if nbytes else bytes(chunk[:-1]) + bytes([chunk[-1] & mask])


def combine(digests: Mapping[str, str]) -> str:
    """The checkpoint's digest from its tensors' digests by name."""
    from blake3 import blake3

    total = blake3()
    for name, digest in sorted((name.encode("utf-8", "surrogatepass"), d) for name, d in digests.items()):
        total.update(len(name).to_bytes(4, "little") + name + bytes.fromhex(digest))
    return total.hexdigest()


def combine_nameless(digests: Iterable[str]) -> str:
    """What stays the same when only names change, from the tensors' digests."""
    from blake3 import blake3

    return blake3(b"".join(map(bytes.fromhex, sorted(digests)))).hexdigest()
