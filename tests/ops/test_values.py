"""Arithmetic on tensors equals torch's, in its dtype, however small the chunks; what makes no sense is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.tensor import Tensor
from ckptkit.ops import equal, values
from ckptkit.ops.fill import fill
from ckptkit.ops.resize import resize

torch = pytest.importorskip("torch", reason="needs the torch extra")


def stored(folder: Path, tensor: Any) -> Tensor:
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    path.write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else b"")
    return Tensor(DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape), File.at(path), 0)


def same(made: Tensor, wanted: Any) -> None:
    assert made.shape == tuple(wanted.shape)
    data = wanted.contiguous().view(torch.uint8).numpy().tobytes()
    for limit in (64, 1 << 20):
        assert b"".join(map(bytes, made.chunks(limit))) == data
    assert made.memory(1 << 20) >= max(map(len, made.chunks(1 << 20)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_elementwise_and_combinations(dtype: str, tmp_path: Path) -> None:
    x, y, z = (torch.randn(7, 9).abs().add(0.5).to(getattr(torch, dtype)) for _ in range(3))
    a, b, c = (stored(tmp_path, t) for t in (x, y, z))
    same(values.elementwise(a, "add", -1), x - 1)
    same(values.elementwise(a, "multiply", 0.5), x * 0.5)
    same(values.elementwise(a, "neg"), -x)
    root = values.elementwise(a, "sqrt").numpy().astype("f8")
    assert np.allclose(root, x.double().sqrt().numpy(), rtol=1e-2 if dtype.endswith("16") else 1e-6)
    same(values.combine([a, b], "add"), x + y)
    same(values.combine([a, b], "subtract"), x - y)
    exact = torch.float64 if dtype == "float64" else torch.float32
    same(
        values.combine([a, b, c], "mean"),
        ((x.to(exact) + y.to(exact) + z.to(exact)) / torch.full_like(x, 3, dtype=exact)).to(x.dtype),
    )


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_weight_norm(dim: int | None, tmp_path: Path) -> None:
    v = torch.randn(4, 5, 3)
    g = (
        torch.rand(1, 1, 1)
        if dim is None
        else torch.rand([n if d == dim else 1 for d, n in enumerate(v.shape)])
    )
    made = values.weight_norm(stored(tmp_path, g), stored(tmp_path, v))
    rest = [d for d in range(3) if d != dim]
    wanted = g * v / v.square().sum(rest, keepdim=True).sqrt()
    assert np.allclose(made.numpy(), wanted.numpy(), rtol=1e-6)
    assert b"".join(map(bytes, made.chunks(16))) == made.tobytes()


def test_dequantize(tmp_path: Path) -> None:
    weight = torch.randn(300, 200).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 2)
    wide = scale.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :200]
    w, s = stored(tmp_path, weight), stored(tmp_path, scale)
    same(
        values.dequantize(w, s, None, (128, 128), DTYPES["bfloat16"], False),
        (weight.float() * wide).bfloat16(),
    )
    rows = torch.rand(300, 1)
    made = values.dequantize(w, stored(tmp_path, rows), None, (), DTYPES["float32"], False)
    same(made, weight.float() * rows)
    integers, zero = torch.randint(-9, 9, (4, 6), dtype=torch.int8), torch.tensor([3], dtype=torch.int8)
    one = torch.tensor([0.25])
    made = values.dequantize(
        stored(tmp_path, integers),
        stored(tmp_path, one),
        stored(tmp_path, zero),
        (),
        DTYPES["float32"],
        False,
    )
    same(made, (integers.float() - 3) * 0.25)
    with pytest.raises(CkptError) as caught:
        values.dequantize(w, s, None, (64, 64), DTYPES["float32"], False)
    assert caught.value.code == "op-shape"


@pytest.mark.parametrize(
    ("mode", "theirs", "antialias", "size"),
    [
        ("cubic", "bicubic", False, (9, 11)),
        ("cubic", "bicubic", True, (3, 4)),
        ("linear", "bilinear", False, (5, 14)),
        ("linear", "bilinear", True, (3, 4)),
        ("nearest", "nearest", False, (14, 3)),
    ],
)
def test_resize(mode: str, theirs: str, antialias: bool, size: tuple[int, int], tmp_path: Path) -> None:
    x = torch.randn(1, 5, 7, 7)
    options = {} if mode == "nearest" else {"align_corners": False, "antialias": antialias}
    wanted = torch.nn.functional.interpolate(x, size=size, mode=theirs, **options)
    made = resize(stored(tmp_path, x), [2, 3], size, mode, antialias)
    assert np.allclose(made.numpy(), wanted.numpy(), atol=1e-5)


def test_fill() -> None:
    made = fill(DTYPES["bool"], (1, 1, 4, 4), "causal")
    assert np.array_equal(
        made.numpy(), torch.tril(torch.ones(4, 4, dtype=torch.bool)).view(1, 1, 4, 4).numpy()
    )
    same(fill(DTYPES["int64"], (2, 5), "arange"), torch.arange(5).expand(2, 5))
    same(
        fill(DTYPES["bfloat16"], (3, 7), "constant", 1.5),
        torch.full((3, 7), 1.5, dtype=torch.bfloat16),
    )
    same(fill(DTYPES["float32"], (3, 3), "eye"), torch.eye(3))


def test_equal_tensors_are_compared_while_they_pass(tmp_path: Path) -> None:
    x = torch.randn(100)
    a, b = stored(tmp_path, x), stored(tmp_path, x.clone())
    same(equal.same([a, b]), x)
    assert equal.same([a, a]) is a
    y = x.clone()
    y[99] = -0.0
    with pytest.raises(CkptError) as caught:
        equal.same([a, stored(tmp_path, y)]).tobytes()
    assert caught.value.code == "replicas-differ"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda f, i: values.elementwise(i, "add", 1), "op-dtype"),
        (lambda f, i: values.combine([f, i], "add"), "op-shape"),
        (lambda f, i: values.weight_norm(f, f), "op-shape"),
        (lambda f, i: values.batch_norm_weight(f, f, f, 0.0), "op-shape"),
        (lambda f, i: values.dequantize(f, f, None, (), DTYPES["float32"], False), "op-dtype"),
        (lambda f, i: fill(DTYPES["int4"], (2,), "constant"), "op-dtype"),
        (lambda f, i: fill(DTYPES["float32"], (2,), "eye"), "op-shape"),
        (lambda f, i: resize(f, [0, 0], [1, 1], "cubic", False), "op-shape"),
        (lambda f, i: equal.same([f, i]), "op-shape"),
    ],
)
def test_what_makes_no_sense(make: Callable[[Tensor, Tensor], Tensor], code: str, tmp_path: Path) -> None:
    floats, integers = torch.randn(3, 4), torch.ones(3, 4, dtype=torch.int64)
    with pytest.raises(CkptError) as caught:
        make(stored(tmp_path, floats), stored(tmp_path, integers))
    assert caught.value.code == code


@pytest.mark.parametrize("kind", ["constant", "arange", "causal", "eye"])
def test_what_is_made_of_nothing_costs_little(kind: Any) -> None:
    small, large = (fill(DTYPES["float32"], (size, size), kind) for size in (10, 3_000))
    assert small.memory(1 << 22) < 5_000
    assert large.memory(1 << 22) <= 13 << 20
    assert b"".join(map(bytes, large.chunks(1 << 22))) == b"".join(map(bytes, large.chunks(1 << 12)))
