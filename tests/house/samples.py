"""Small checkpoints written with the standard library alone, so that nothing heavy is loaded to make them."""

import json
import struct
import zipfile
from pathlib import Path

# Two float32 tensors of a small linear layer.
TENSORS: dict[str, tuple[tuple[int, ...], bytes]] = {
    "fc.weight": ((2, 3), struct.pack("<6f", 0.0, 0.5, -1.0, 1.5, 2.0, -2.5)),
    "fc.bias": ((2,), struct.pack("<2f", 0.25, -0.25)),
}


def safetensors(path: Path) -> Path:
    """u64 length, JSON header padded with blanks to 8 bytes, tensor bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, data) in TENSORS.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in TENSORS.values()))
    return path


def pytorch(path: Path) -> Path:
    """What `torch.save(state_dict)` writes: a zip of data.pkl, one storage per tensor, byteorder, version."""
    items = b""
    for key, (name, (shape, data)) in enumerate(TENSORS.items()):
        strides = [1] * len(shape)
        for axis in range(len(shape) - 1, 0, -1):
            strides[axis - 1] = strides[axis] * shape[axis]
        storage = _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(key)) + _text("cpu")
        storage = b"(" + storage + _int(len(data) // 4) + b"tQ"
        arguments = storage + _int(0) + _ints(shape) + _ints(strides) + b"\x89ccollections\nOrderedDict\n)R"
        items += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
    pickled = b"\x80\x02" + b"ccollections\nOrderedDict\n)R(" + items + b"u."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, (_, data) in enumerate(TENSORS.values()):
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def onnx(path: Path) -> Path:
    """A ModelProto whose graph is one Gemm over the tensors, as raw initializers."""
    initializers = b""
    for name, (shape, data) in TENSORS.items():
        dims = b"".join(_varint(1, size) for size in shape)
        initializers += _bytes(5, dims + _varint(2, 1) + _bytes(8, name.encode()) + _bytes(9, data))
    gemm = b"".join(_bytes(1, name) for name in (b"x", b"fc.weight", b"fc.bias")) + _bytes(2, b"y")
    gemm += _bytes(3, b"fc") + _bytes(4, b"Gemm")
    gemm += _bytes(5, _bytes(1, b"transB") + _varint(3, 1) + _varint(20, 2))
    graph = _bytes(1, gemm) + _bytes(2, b"main") + initializers
    graph += _bytes(11, _value(b"x", (1, 3))) + _bytes(12, _value(b"y", (1, 2)))
    path.write_bytes(_varint(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _varint(2, 17)))
    return path


def lfs_pointer(path: Path) -> Path:
    """What a clone without git-lfs leaves in the place of a checkpoint."""
    oid = "0" * 64
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 438000000\n", "utf-8"
    )
    return path


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _ints(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


def _plain(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _varint(field: int, value: int) -> bytes:
    return _plain(field << 3) + _plain(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _plain(field << 3 | 2) + _plain(len(value)) + value


def _value(name: bytes, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_bytes(1, _varint(1, size)) for size in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _varint(1, 1) + _bytes(2, dims)))
