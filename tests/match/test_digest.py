"""The digest is what its definition says, and independent of chunking."""

import struct
from pathlib import Path

from blake3 import blake3

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.files import File
from ckptkit.core.tensor import Tensor
from ckptkit.match.digest import combine, tensor_digest


def test_a_tensor_digest_by_its_definition(tmp_path: Path) -> None:
    data = struct.pack("<6f", 0.0, -0.0, 1.5, float("nan"), float("inf"), 3.0)
    (tmp_path / "f").write_bytes(data)
    tensor = Tensor(DTYPES["float32"], (2, 3), File.at(tmp_path / "f"), 0)
    assert tensor_digest(tensor) == blake3(b"ckptkit-1\0float32\x002,3\0" + data).hexdigest()
    scalar = Tensor(DTYPES["float32"], (), File.at(tmp_path / "f"), 8)
    assert tensor_digest(scalar) == blake3(b"ckptkit-1\0float32\0\0" + data[8:12]).hexdigest()


def test_a_checkpoint_digest_by_its_definition_in_any_order() -> None:
    digests = {"b": "11" * 32, "é": "22" * 32, "a.b": "33" * 32}
    parts = b""
    for name in ("a.b", "b", "é"):
        raw = name.encode()
        parts += struct.pack("<I", len(raw)) + raw + bytes.fromhex(digests[name])
    assert combine(digests) == blake3(parts).hexdigest()
    assert combine(dict(reversed(digests.items()))) == blake3(parts).hexdigest()
