"""Health: what would make a checkpoint load badly, whatever it is loaded into.

What keeps it from being read at all is the reader's error. Each row of `_TESTS` is one kind of finding.
"""

from collections.abc import Callable, Iterator

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.format.companions import companions
from ckptkit.match.quantized import quantized_members
from ckptkit.match.schemes import WRAPPERS, naming
from ckptkit.targets.target import weights
from ckptkit.verbs.check.commands import command, output
from ckptkit.verbs.check.report import CheckReport, Misfit

_NARROW = ("int8", "uint8", "int4", "uint4", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")

_ORDER = ("error", "warning", "note")
# What is gone in a copy that holds the weights alone.
_COPIED = {
    "bytes-unclaimed", "names-wrapped", "not-in-index", "optimizer-shipped", "shadowed-copy", "storage-unused",
    "total-size-mismatch", "zip-deflated", "zip-root",
}  # fmt: skip
# What is gone in a single file, which has no configuration beside it.
_ALONE = {"duplicate-name", "json-invalid", "stale-quantization"}


def health(
    graph: TensorGraph, *, values: bool = False, progress: Callable[[int, int], None] | None = None
) -> CheckReport:
    """The report on a checkpoint without a target; with `values`, its tensors are read too."""
    findings = [Misfit(f.code, f.severity, f.where, found=f.message, hint=f.hint) for f in graph.findings]
    findings += [finding for test in _TESTS for finding in test(graph)]
    if values:
        from ckptkit.verbs.check.values import values as measured

        findings += measured(weights(graph), progress)
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    broken = [finding for finding in findings if finding.severity == "error"]
    warned = [finding for finding in findings if finding.severity == "warning"]
    summary = "unhealthy" if broken else "healthy, with warnings" if warned else "healthy"
    return CheckReport(
        path=graph.origin.path,
        target="",
        verdict="does not fit" if broken else "fits",
        summary=summary,
        findings=tuple(findings),
        fixes=tuple(_fixes(graph, findings)),
        tensors=len(graph),
        fitting=len(graph),
    )


def _fixes(graph: TensorGraph, findings: list[Misfit]) -> Iterator[str]:
    """One convert that mends what a copy of the weights alone mends."""
    codes = {finding.code for finding in findings if finding.severity != "note"}
    if graph.nodes or not codes & (_COPIED | _ALONE):
        return
    rules = [part for rule in _strips(graph) for part in ("--rules", rule)]
    path = graph.origin.path
    yield command("convert", path, output(path, single=bool(codes & _ALONE)), *rules)


def _optimizer(graph: TensorGraph) -> Iterator[Misfit]:
    states = [section for section in graph.origin.sections if section.role == "optimizer"]
    if states:
        nbytes = sum(section.nbytes for section in states)
        names = ", ".join(section.name for section in states)
        yield Misfit(
            "optimizer-shipped", "warning", names, "weights", f"{nbytes:,} bytes of optimizer state",
            "a training checkpoint", "convert keeps the weights alone",
        )  # fmt: skip


def _wrapped(graph: TensorGraph) -> Iterator[Misfit]:
    for rule in _strips(graph):
        prefix = rule.removeprefix("strip:")
        yield Misfit(
            "names-wrapped", "warning", "", "the model's own names", f"the prefix {prefix!r}",
            "saved from inside a wrapper", f"convert --rules {rule}",
        )  # fmt: skip


def _strips(graph: TensorGraph) -> list[str]:
    """The rule that takes off what only wrappers add to the start of every name."""
    prefix = "".join(wrapper for wrapper in naming(graph.tensors).wrappers if wrapper in WRAPPERS)
    return [f"strip:{prefix}"] if prefix and all(name.startswith(prefix) for name in graph) else []


def _companions(graph: TensorGraph) -> Iterator[Misfit]:
    """What stands beside the weights of a folder and contradicts them."""
    try:
        companions(graph, graph.origin.format)
    except CkptError as error:
        yield Misfit(error.code, "error", str(error.where or ""), found=error.message, hint=error.hint or "")


def _scales(graph: TensorGraph) -> Iterator[Misfit]:
    """Narrow two-dimensional weights without scales: their numbers mean nothing."""
    if graph.nodes:
        return
    members = quantized_members(graph.tensors)
    for name, tensor in graph.tensors.items():
        narrow = tensor.dtype.name in _NARROW and len(tensor.shape) == 2 and name.endswith("weight")
        if narrow and name not in members:
            yield Misfit(
                "scales-missing", "error", name, "scales beside it", f"{tensor.dtype.name} alone",
                "quantised, and its scales are missing", "save it again with all that its quantiser wrote",
            )  # fmt: skip


_TESTS: tuple[Callable[[TensorGraph], Iterator[Misfit]], ...] = (_scales, _companions, _optimizer, _wrapped)
