"""What was noticed about a checkpoint or a plan, as data; rendering is the command line's work."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth telling.

    `code` is listed in `ckptkit.core.codes.CODES`; `where` names the tensor, section or file ("" for the
    whole); `hint` is the next step ("" if there is none).
    """

    code: str
    severity: Severity
    where: str
    message: str
    hint: str = ""
