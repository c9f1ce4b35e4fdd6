"""Quantised weights: a packed or narrow tensor that means nothing without the scales beside it.

A family is a row of a table: how the weight's name ends, which dtypes it has, what must stand beside it, what
may, and how many logical elements it holds. A weight and its companions are one unit everywhere: none of them
is cast, and together they count as the elements of the weight.

Sources of the layouts: AutoGPTQ and AutoAWQ (`qweight`), DeepSeek-V3 and compressed-tensors (`weight_scale*`),
gpt-oss (`_blocks`, `_scales`), bitsandbytes (`absmax`, `SCB`), ModelOpt (`weight_scale_2`), onnxruntime
(`_quantized`), torch (`qint8` with `scale` and `zero_point`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ckptkit.core.tensor import Tensor

Unit = Mapping[str, Tensor]  # "" → the weight; ending → companion


@dataclass(frozen=True, slots=True)
class Quantized:
    """What a checkpoint holds of one family.

    Attributes:
        family: its name for people.
        weights: how many weights are quantised so.
        parameters: the logical elements of those weights.
        members: names of the weights and of all that belongs to them.
    """

    family: str
    weights: int
    parameters: int
    members: frozenset[str]


class _Family(NamedTuple):
    name: str
    ending: str  # of the weight's name; a companion's ending stands in its place
    dtypes: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]  # one of each group must be there
    also: tuple[str, ...]
    elements: Callable[[Unit], int | None]  # None: the shapes do not fit this family


def _times(factor: int) -> Callable[[Unit], int | None]:
    return lambda unit: unit[""].size * factor


def _gptq(unit: Unit) -> int | None:
    """qweight (in·bits/32, out), qzeros (groups, out·bits/32), scales (groups, out)."""
    weight, zeros, scales = unit[""].shape, unit[".qzeros"].shape, unit[".scales"].shape
    if not len(weight) == len(zeros) == len(scales) == 2 or scales[1] != weight[1] or not zeros[1]:
        return None
    return weight[0] * weight[1] * weight[1] // zeros[1]


def _awq(unit: Unit) -> int | None:
    """qweight (in, out·bits/32), scales (groups, out)."""
    weight, scales = unit[""].shape, unit[".scales"].shape
    if len(weight) != 2 or len(scales) != 2 or not weight[1] or scales[1] % weight[1]:
        return None
    return weight[0] * scales[1]


def _stated(unit: Unit) -> int | None:
    """weight_shape holds the two dimensions as integers."""
    shape, packed = unit[".weight_shape"], unit[""].shape
    if len(packed) != 2 or shape.size != 2 or shape.dtype.name not in ("int64", "int32"):
        return None
    data = b"".join(shape.chunks())
    width = len(data) // 2
    rows, columns = (int.from_bytes(part, "little", signed=True) for part in (data[:width], data[width:]))
    return rows * columns if rows == packed[0] and 0 < columns <= packed[1] * 32 else None


_FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_NF4 = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
_NESTED = (".weight.nested_absmax", ".weight.nested_quant_map")
_INPUT = (".input_scale", ".input_zero_point", ".k_scale", ".v_scale")
_PACKED = (".weight_zero_point", ".weight_g_idx", ".input_global_scale", *_INPUT)

# fmt: off
_FAMILIES = (
    _Family("GPTQ", ".qweight", ("int32",), ((".qzeros",), (".scales",)), (".g_idx",), _gptq),
    _Family("AWQ", ".qweight", ("int32",), ((".qzeros",), (".scales",)), (), _awq),
    _Family("MXFP4", "_blocks", ("uint8",), (("_scales",),), (), _times(2)),
    _Family("bitsandbytes 4-bit", ".weight", ("uint8",), ((".weight.absmax",), (".weight.quant_map",)),
            (*_NF4, *_NESTED), _times(2)),
    _Family("bitsandbytes 8-bit", ".weight", ("int8",), ((".SCB",),), (".weight_format",), _times(1)),
    _Family("NVFP4", ".weight", ("uint8",), ((".weight_scale",), (".weight_scale_2",)), _INPUT, _times(2)),
    _Family("NVFP4", ".weight_packed", ("uint8",), ((".weight_scale",), (".weight_global_scale",)),
            _PACKED, _times(2)),
    _Family("packed integers + scale", ".weight_packed", ("int32",), ((".weight_scale",), (".weight_shape",)),
            _PACKED, _stated),
    _Family("FP8 + scale", "", _FP8, (("_scale_inv", "_scale"),), (), _times(1)),
    _Family("FP8 + scale", ".weight", _FP8, ((".scale_weight",),), (".scale_input",), _times(1)),
    _Family("INT8 + scale", ".weight", ("int8",), ((".weight_scale",),), (".weight_zero_point", *_INPUT), _times(1)),
    _Family("ONNX integers + scale", "_quantized", ("int8", "uint8", "int4", "uint4"), (("_scale",),),
            ("_zero_point",), _times(1)),
    _Family("PyTorch quantized", "", ("qint8", "quint8", "qint32", "quint4x2", "quint2x4"), ((".scale", ".scales"),),
            (".zero_point", ".zero_points", ".axis"), _times(1)),
)
# fmt: on

_BY_DTYPE: dict[str, list[_Family]] = {}
for _family in _FAMILIES:
    for _dtype in _family.dtypes:
        _BY_DTYPE.setdefault(_dtype, []).append(_family)


# Scales that stand alone: of caches and activations, whose numbers are in no tensor.
_LONE = (
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
    ".prob_output_scale",
    ".input_scale",
    ".output_scale",
)


def quantized(tensors: Mapping[str, Tensor]) -> tuple[Quantized, ...]:
    """The quantised weights of a checkpoint, by family, in the order of the families' table."""
    counts: dict[str, tuple[int, int]] = {}
    members: dict[str, set[str]] = {}
    for family, names, elements in _units(tensors):
        weights, total = counts.get(family, (0, 0))
        counts[family] = (weights + 1, total + elements)
        members.setdefault(family, set()).update(names)
    order = dict.fromkeys(family.name for family in _FAMILIES if family.name in counts)
    return tuple(Quantized(name, *counts[name], frozenset(members[name])) for name in order)


def quantized_members(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of all quantised weights and of the scales, zero points and tables that belong to them or stand alone."""
    lone = (name for name in tensors if name.endswith(_LONE))
    return frozenset(lone).union(*(names for _, names, _ in _units(tensors)))


def torn_units(tensors: Mapping[str, Tensor], kept: Collection[str]) -> list[tuple[str, str]]:
    """(a name kept, a name left behind) of each quantised weight that a selection would part from its scales."""
    torn = []
    for _, names, _ in _units(tensors):
        there = [name for name in names if name in kept]
        if there and len(there) < len(names):
            torn.append((there[0], next(name for name in names if name not in kept)))
    return torn


def _units(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """(family, weight and companions, logical elements) of each quantised weight."""
    for name, tensor in tensors.items():
        for family in _BY_DTYPE.get(tensor.dtype.name, ()):
            found = _unit(family, name, tensors)
            elements = family.elements({k: tensors[v] for k, v in found.items()}) if found else None
            if found and elements is not None:
                yield family.name, tuple(found.values()), elements
                break


def _unit(family: _Family, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Ending → name of the weight ("") and of its companions; None unless it has all it needs."""
    if not name.endswith(family.ending):
        return None
    stem = name[: len(name) - len(family.ending)]
    unit = {"": name}
    for group in family.needs:
        there = [ending for ending in group if stem + ending in tensors]
        if not there:
            return None
        unit.update((ending, stem + ending) for ending in there)
    unit.update((ending, stem + ending) for ending in family.also if stem + ending in tensors)
    if family.ending == "":  # scales of the activations stand beside the weight
        base = stem.removesuffix(".weight")
        unit.update((e, base + e) for e in _INPUT if base != stem and base + e in tensors)
    return unit
