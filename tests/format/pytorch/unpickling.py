"""What the tests of this folder share: torch archives taken apart with the standard library, torch as oracle."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

from ckptkit.core.files import File
from ckptkit.core.options import ReadOptions
from ckptkit.core.storage import FileStorage, MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.format.pytorch import machine
from ckptkit.format.pytorch.assemble import Assembly, assemble
from ckptkit.format.pytorch.nodes import Dict, Object, Set
from ckptkit.format.pytorch.refs import StorageRef, storage_id


def read(path: Path, options: ReadOptions | None = None, **how: Any) -> Assembly:
    """A torch.save archive with stored members, assembled."""
    if how:
        options = ReadOptions(**how)
    file = File.at(path)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    refs: dict[str, StorageRef] = {}

    def offset(name: str) -> int:
        at = members[name].header_offset
        return int(at + 30 + sum(struct.unpack_from("<HH", raw, at + 26)))

    def refer(pid: object) -> StorageRef:
        found = storage_id(pid)
        if found.key not in refs:
            storage = FileStorage(file, offset(f"data/{found.key}"), members[f"data/{found.key}"].file_size)
            refs[found.key] = StorageRef(storage, found.dtype, found.nbytes, False, found.location, found.key)
        return refs[found.key]

    start = offset("data.pkl")
    data = raw[start : start + members["data.pkl"].file_size]
    value = machine.load(data, persistent=refer).value
    return assemble(value, options or ReadOptions(), label=file, nested=legacy)


def legacy(data: bytes) -> object:
    """The value of a legacy stream in memory."""
    refs: dict[str, StorageRef] = {}

    def refer(pid: object) -> StorageRef:
        found = storage_id(pid)
        return refs.setdefault(found.key, StorageRef(None, found.dtype, found.nbytes, key=found.key))

    end = 0
    values = []
    for _ in range(5):
        value, _, end = machine.load(data, persistent=refer, start=end)
        values.append(value)
    for key in values[4]:
        nbytes = refs[key].nbytes
        refs[key].storage = MemoryStorage(data[end + 8 : end + 8 + nbytes], ("nested", key))
        end += 8 + nbytes
    return values[3]


def save(tmp_path: Path, value: object, **how: Any) -> Path:
    import torch

    path = tmp_path / "model.pt"
    torch.save(value, path, **how)
    return path


def saved(tmp_path: Path, value: object, **how: Any) -> Assembly:
    """`value` saved by torch and read back; `section`, `ambiguous` go to the reader."""
    options = {key: how.pop(key) for key in ("section", "ambiguous") if key in how}
    return read(save(tmp_path, value, **how), **options)


def same(ours: Tensor, theirs: Any) -> None:
    """Dtype, shape and every byte are those of the torch tensor."""
    import torch

    theirs = theirs.detach()
    assert ours.dtype.torch == str(theirs.dtype).removeprefix("torch.")
    shape = tuple(theirs.shape)
    if ours.dtype.name == "float4_e2m1fn":
        shape = (*shape[:-1], shape[-1] * 2) if shape else (2,)
    assert ours.shape == shape
    if theirs.is_quantized:
        theirs = theirs.int_repr()
    data = theirs.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    raw = io.BytesIO(bytes(data.untyped_storage().tolist())).read()
    assert ours.tobytes() == raw[: len(raw)]


def same_all(ours: Assembly, theirs: dict[str, Any]) -> None:
    """Names in their order, and every tensor."""
    assert list(ours.tensors) == list(theirs)
    for name, tensor in ours.tensors.items():
        same(tensor, theirs[name])


def plain(node: object) -> object:
    """A value of the machine as Python's own (for shallow values only: this recurses)."""
    from ckptkit.format.pytorch.arrays import payload
    from ckptkit.format.pytorch.globals import Value, simplify
    from ckptkit.format.pytorch.nodes import raw_bytes

    if type(node) is Object:
        if node.name in {("builtins", "complex"), ("__builtin__", "complex")}:
            return complex(*node.args)
        if payload(node) is not None:
            return raw_bytes(payload(node))
        node = simplify(node)
    if isinstance(node, Value):
        return node.value
    if type(node) is Dict:
        return {plain(key): plain(value) for key, value in node.entries()}
    if type(node) is Set:
        return {plain(item) for item in node}
    if type(node) in (list, tuple):
        return type(node)(plain(item) for item in node)  # type: ignore[call-overload, attr-defined]
    return node
