"""Quantised weights: named by family, counted by what they stand for, and kept together with their scales."""

import pytest

from ckptkit.core.dtypes import dtype
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.match.quantized import quantized, quantized_members

# family, tensors of one unit, logical elements. 64 inputs and 32 outputs in groups of 32.
UNITS = [
    (
        "GPTQ",
        {
            "l.qweight": "int32 8 32",
            "l.qzeros": "int32 2 4",
            "l.scales": "float16 2 32",
            "l.g_idx": "int32 64",
        },
        64 * 32,
    ),
    ("GPTQ", {"l.qweight": "int32 16 32", "l.qzeros": "int32 2 8", "l.scales": "float16 2 32"}, 64 * 32),
    ("AWQ", {"l.qweight": "int32 64 4", "l.qzeros": "int32 2 4", "l.scales": "float16 2 32"}, 64 * 32),
    ("FP8 + scale", {"l.weight": "float8_e4m3fn 32 64", "l.weight_scale_inv": "float32 1 1"}, 64 * 32),
    (
        "FP8 + scale",
        {"l.weight": "float8_e5m2 32 64", "l.weight_scale": "float32", "l.input_scale": "float32"},
        64 * 32,
    ),
    ("FP8 + scale", {"l.weight": "float8_e4m3fn 32 64", "l.scale_weight": "float32"}, 64 * 32),
    ("MXFP4", {"l_blocks": "uint8 32 2 16", "l_scales": "uint8 32 2"}, 64 * 32),
    (
        "bitsandbytes 4-bit",
        {
            "l.weight": "uint8 1024 1",
            "l.weight.absmax": "float32 32",
            "l.weight.quant_map": "float32 16",
            "l.weight.quant_state.bitsandbytes__nf4": "uint8 87",
        },
        64 * 32,
    ),
    (
        "bitsandbytes 8-bit",
        {"l.weight": "int8 32 64", "l.SCB": "float32 32", "l.weight_format": "uint8"},
        64 * 32,
    ),
    (
        "NVFP4",
        {"l.weight": "uint8 32 32", "l.weight_scale": "float8_e4m3fn 32 4", "l.weight_scale_2": "float32"},
        64 * 32,
    ),
    ("INT8 + scale", {"l.weight": "int8 32 64", "l.weight_scale": "float32 32 1"}, 64 * 32),
    ("PyTorch quantized", {"l": "qint8 32 64", "l.scale": "float64", "l.zero_point": "int64"}, 64 * 32),
]


def unit(texts: dict[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for name, text in texts.items():
        kind, *shape = text.split()
        tensors[name] = Tensor(dtype(kind), tuple(map(int, shape)))
    return tensors


@pytest.mark.parametrize(
    ("family", "texts", "elements"), UNITS, ids=[f"{u[0]}-{i}" for i, u in enumerate(UNITS)]
)
def test_a_unit_is_named_counted_and_whole(family: str, texts: dict[str, str], elements: int) -> None:
    tensors = unit(texts) | unit({"norm.weight": "float32 64"})
    (found,) = quantized(tensors)
    assert (found.family, found.weights, found.parameters) == (family, 1, elements)
    assert quantized_members(tensors) == set(texts)


@pytest.mark.parametrize(
    "texts",
    [
        {"l.weight": "float8_e4m3fn 32 64"},  # no scale
        {"l.weight": "int8 32 64"},
        {"l_blocks": "uint8 32 2 16"},
        {"l.weight": "float16 32 64", "l.weight_scale": "float32"},
        {
            "l.qweight": "int32 8 32",
            "l.qzeros": "int32 2 4",
            "l.scales": "float16 2 30",
        },  # shapes of no family
        {"l.qweight": "int32 0 0", "l.qzeros": "int32 0 0", "l.scales": "float16 0 0"},
        {"l.qweight": "int32", "l.qzeros": "int32", "l.scales": "float16"},
    ],
)
def test_what_lacks_its_scales_is_of_no_family(texts: dict[str, str]) -> None:
    assert quantized(unit(texts)) == ()


def test_a_stated_shape_is_read() -> None:
    shape = (32).to_bytes(8, "little") + (64).to_bytes(8, "little")
    tensors = unit({"l.weight_packed": "int32 32 8", "l.weight_scale": "float16 32 2"})
    tensors["l.weight_shape"] = view(MemoryStorage(shape, "s"), dtype("int64"), (2,), (1,), 0)
    (found,) = quantized(tensors)
    assert (found.family, found.parameters) == ("packed integers + scale", 32 * 64)
    tensors["l.weight_shape"] = view(MemoryStorage(b"\xff" * 16, "s"), dtype("int64"), (2,), (1,), 0)
    assert quantized(tensors) == ()


def test_families_may_stand_side_by_side() -> None:
    tensors = unit(UNITS[3][1]) | unit({"e_blocks": "uint8 2 16", "e_scales": "uint8 2"})
    assert [found.family for found in quantized(tensors)] == ["MXFP4", "FP8 + scale"]
