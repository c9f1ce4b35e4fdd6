"""Quantised weights and what belongs to them are one unit.

Scales, zero points and packed weights that no rule names follow the weight that they belong to: where a rule renames
(or drops) `….weight`, `….weight_scale_inv` goes along, and `….qweight`, `….scales`, `….qzeros` stand in for a
`….weight` that the file does not have. A rule that does more than rename cannot take such a weight along, because
its scales would no longer fit: unless rules name the scales too, that is an error.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ckptkit.core.graph import TensorGraph

# What companions add to the weight's full name, and what stands in the place of its last part.
_AFTER = (
    "_scale_inv", "_scale", "_scale_2", "_zero_point", "_g_idx", "_global_scale", "_packed", "_shape", "_format",
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4", ".scale", ".zero_point", "_blocks", "_scales",
)  # fmt: skip
_INSTEAD = (
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "SCB",
    "input_scale",
    "input_zero_point",
    "k_scale",
    "v_scale",
)
_QUANTIZED = frozenset(
    ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn", "int8", "uint8", "int32",
     "int4", "uint4", "qint8", "quint8", "qint32", "quint4x2", "quint2x4")
)  # fmt: skip
_WEIGHT = "weight"


class Companion(NamedTuple):
    """A tensor that belongs to a weight: `weight` is the weight's name, whether the file has it or not."""

    name: str
    weight: str
    ending: str
    instead: bool

    def beside(self, weight: str) -> str:
        """Its name where the weight has this one."""
        if self.instead:
            return weight[: len(weight) - len(_WEIGHT)] + self.ending
        return weight + self.ending


def companion(name: str, graph: TensorGraph) -> Iterator[Companion]:
    """The weights that a tensor of this name can belong to."""
    for ending in _AFTER:
        weight = name.removesuffix(ending)
        if weight != name and (
            _quantized(weight, graph) or f"{weight}_packed" in graph or f"{weight}_blocks" in graph
        ):
            yield Companion(name, weight, ending, False)
    stem, dot, last = name.rpartition(".")
    if dot and last in _INSTEAD:
        weight = f"{stem}.{_WEIGHT}"
        if f"{stem}.qweight" in graph or _quantized(weight, graph):
            yield Companion(name, weight, last, True)


def _quantized(name: str, graph: TensorGraph) -> bool:
    return name in graph and graph[name].dtype.name in _QUANTIZED
