"""What `check` answers, as data."""

from dataclasses import dataclass
from typing import Literal

from ckptkit.core.findings import Severity
from ckptkit.match.fit.mending import Mend

Verdict = Literal["fits", "does not fit"]


@dataclass(frozen=True, slots=True)
class Misfit:
    """One thing that is not as expected.

    Attributes:
        code: listed in `ckptkit.core.codes.CODES`.
        severity: only errors make a checkpoint not fit.
        name: the tensor, file, metadata key or policy concerned; "" for the whole.
        expected, found: in words; "" where there is nothing.
        cause: why, most likely; "" if nothing tells.
        hint: the next step; "" if there is none.
        step: what would mend it, for programs: `drop`, `folder`, `dtype:NAME`, `fit`, or "".
        rule: the rule that would mend it, if one would.
        head: whether it concerns the outputs of the model alone.
    """

    code: str
    severity: Severity
    name: str
    expected: str = ""
    found: str = ""
    cause: str = ""
    hint: str = ""
    step: str = ""
    rule: Mend | None = None
    head: bool = False


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The answer for one checkpoint.

    Attributes:
        path: the checkpoint.
        target: what it was checked against; "" for its health alone.
        verdict: `fits` or `does not fit`.
        summary: the answer in words: "fits except the head", "wrong architecture", …
        findings: everything noticed, errors first; those that were allowed are not among them.
        fixes: commands that mend it, best first.
        tensors: how many the checkpoint has.
        fitting: how many of them are exactly as expected.
        expected: how many the target demands.
        allowed: how many differences were allowed.
    """

    path: str
    target: str
    verdict: Verdict
    summary: str
    findings: tuple[Misfit, ...]
    fixes: tuple[str, ...] = ()
    tensors: int = 0
    fitting: int = 0
    expected: int = 0
    allowed: int = 0

    @property
    def fits(self) -> bool:
        """Whether nothing is in the way."""
        return self.verdict == "fits"
