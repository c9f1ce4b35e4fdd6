"""Inspect, compare and convert model checkpoints without running anything found in them.

    import ckptkit as ck
    graph = ck.read("model.pt")          # a mapping name → Tensor; costs the header, not the weights
    graph["fc.weight"].numpy()
    ck.convert("model.pt", "model.safetensors")
    ck.diff("base.safetensors", "tuned.pt").equal

Names are loaded on first use, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckptkit.core.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from ckptkit.core.budgets import Budgets
    from ckptkit.core.dtypes import DType
    from ckptkit.core.errors import CkptError
    from ckptkit.core.findings import Finding
    from ckptkit.core.graph import TensorGraph
    from ckptkit.core.tensor import Tensor
    from ckptkit.format import formats, read
    from ckptkit.match.published import recognise
    from ckptkit.rules.outcome import Rewrite
    from ckptkit.rules.ruleset import Rules
    from ckptkit.targets.catalogue import architectures
    from ckptkit.targets.contract import Contract
    from ckptkit.verbs.check import CheckReport, check
    from ckptkit.verbs.convert import Plan, Receipt, convert, plan, write
    from ckptkit.verbs.diff import Diff, diff
    from ckptkit.verbs.digest import Digest, digest
    from ckptkit.verbs.export import Exported, export
    from ckptkit.verbs.prove import Proof, prove
    from ckptkit.verbs.scan import ScanReport, scan

_HOME = {
    "Budgets": "ckptkit.core.budgets",
    "CheckReport": "ckptkit.verbs.check",
    "CkptError": "ckptkit.core.errors",
    "Contract": "ckptkit.targets.contract",
    "DType": "ckptkit.core.dtypes",
    "Diff": "ckptkit.verbs.diff",
    "Digest": "ckptkit.verbs.digest",
    "Exported": "ckptkit.verbs.export",
    "Finding": "ckptkit.core.findings",
    "Plan": "ckptkit.verbs.convert",
    "Proof": "ckptkit.verbs.prove",
    "Receipt": "ckptkit.verbs.convert",
    "Rewrite": "ckptkit.rules.outcome",
    "Rules": "ckptkit.rules.ruleset",
    "ScanReport": "ckptkit.verbs.scan",
    "Tensor": "ckptkit.core.tensor",
    "TensorGraph": "ckptkit.core.graph",
    "architectures": "ckptkit.targets.catalogue",
    "check": "ckptkit.verbs.check",
    "convert": "ckptkit.verbs.convert",
    "diff": "ckptkit.verbs.diff",
    "digest": "ckptkit.verbs.digest",
    "export": "ckptkit.verbs.export",
    "formats": "ckptkit.format",
    "plan": "ckptkit.verbs.convert",
    "prove": "ckptkit.verbs.prove",
    "read": "ckptkit.format",
    "recognise": "ckptkit.match.published",
    "scan": "ckptkit.verbs.scan",
    "write": "ckptkit.verbs.convert",
}

__all__ = [
    "Budgets",
    "CheckReport",
    "CkptError",
    "Contract",
    "DType",
    "Diff",
    "Digest",
    "Exported",
    "Finding",
    "Plan",
    "Proof",
    "Receipt",
    "Rewrite",
    "Rules",
    "ScanReport",
    "Tensor",
    "TensorGraph",
    "architectures",
    "check",
    "convert",
    "diff",
    "digest",
    "export",
    "formats",
    "plan",
    "prove",
    "read",
    "recognise",
    "scan",
    "write",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'ckptkit' has no attribute {name!r}") from None
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
