"""Health: what would make a checkpoint load badly, whatever it is loaded into. Manifest only.

What keeps it from being read at all is the reader's error. Each row of `_TESTS` is one kind of finding.
"""

from collections.abc import Callable, Iterator

from ckptkit.core.graph import TensorGraph
from ckptkit.match.quantized import quantized_members
from ckptkit.match.schemes import naming
from ckptkit.verbs.check.report import CheckReport, Misfit

_NARROW = ("int8", "uint8", "int4", "uint4", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")


def health(graph: TensorGraph) -> CheckReport:
    """The report on a checkpoint without a target."""
    path = graph.origin.path
    findings = [Misfit(f.code, f.severity, f.where, found=f.message, hint=f.hint) for f in graph.findings]
    findings += [finding for test in _TESTS for finding in test(graph)]
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    broken = [finding for finding in findings if finding.severity == "error"]
    warned = [finding for finding in findings if finding.severity == "warning"]
    summary = (
        "would load badly" if broken else "readable, with warnings" if warned else "nothing is wrong with it"
    )
    return CheckReport(
        path=path,
        target="",
        verdict="does not fit" if broken else "fits",
        summary=summary,
        findings=tuple(findings),
        tensors=len(graph),
        fitting=len(graph),
    )


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
    found = naming(graph.tensors)
    sure = [wrapper for wrapper in found.wrappers if wrapper.rstrip(".") in _WRAPPERS]
    if sure:
        yield Misfit(
            "names-wrapped", "warning", "", "the model's own names", f"the prefix {''.join(sure)!r}",
            "saved from inside a wrapper", f"convert --rules strip:{''.join(sure)}",
        )  # fmt: skip


_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module")


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


_TESTS: tuple[Callable[[TensorGraph], Iterator[Misfit]], ...] = (_scales, _optimizer, _wrapped)
