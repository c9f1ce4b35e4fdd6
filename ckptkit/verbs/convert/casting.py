"""`--dtype`: float tensors in another width."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.globs import matching
from ckptkit.core.graph import TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.match.quantized import quantized_members
from ckptkit.rules.outcome import Rewrite

CASTABLE = ("float64", "float32", "float16", "bfloat16")


def cast_floats(
    rewrite: Rewrite, source: TensorGraph, dtype: str, keep_dtype: Sequence[str], *, onnx: bool
) -> tuple[Rewrite, dict[str, str]]:
    """The rewrite with float tensors cast, and name → dtype it had.

    Quantised weights and their scales stay, and what `keep_dtype` matches among the names of the source; to ONNX
    (`onnx`) also what the graph needs as it is. Raises CkptError `dtype-unknown`, `no-match`.
    """
    wanted = DTYPES.get(dtype)
    if wanted is None or wanted.kind != "float" or wanted.bits < 8:
        raise CkptError("dtype-unknown", "cannot cast to this dtype", dtype, f"one of {', '.join(CASTABLE)}")
    from ckptkit.ops.cast import cast

    graph = rewrite.graph
    fixed = _fixed(graph, wanted, onnx)
    fixed |= quantized_members(graph)
    if keep_dtype:
        fixed |= frozenset(matching(source, keep_dtype))
    for names in graph.storages():  # tied tensors are one: they keep their dtype together
        if len(names) > 1 and not fixed.isdisjoint(names):
            fixed |= frozenset(names)
    tensors: dict[str, Tensor] = {}
    had: dict[str, str] = {}
    for name, tensor in graph.items():
        before = tensor.dtype.name
        if before in CASTABLE and before != dtype and fixed.isdisjoint((name, *rewrite.trace[name].sources)):
            had[name] = before
            tensor = cast(tensor, wanted)
        tensors[name] = tensor
    note = _kept(graph, had, onnx)
    return replace(rewrite, graph=replace(graph, tensors=tensors), findings=(*rewrite.findings, *note)), had


def _fixed(graph: TensorGraph, wanted: DType, onnx: bool) -> frozenset[str]:
    """Names of the weights that a graph cannot have in another dtype, or had better not have."""
    if not onnx or graph.origin.format != "onnx":
        return frozenset()
    from ckptkit.format.onnx.casts import fixed

    return fixed(graph, wanted)


def _kept(graph: TensorGraph, cast: Mapping[str, str], onnx: bool) -> tuple[Finding, ...]:
    """A note of what a cast leaves alone, by dtype."""
    left = Counter(tensor.dtype.name for name, tensor in graph.items() if name not in cast)
    if not left:
        return ()
    text = f"not cast: {', '.join(f'{n} ×{c}' for n, c in left.items())}"
    if onnx:
        text += " (a graph keeps weights of fewer than 256 values, its inputs and its outputs)"
    return (Finding("dtype-kept", "note", "", text),)
