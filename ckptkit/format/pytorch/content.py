"""What a container gives to the part that makes a tensor graph of it."""

from dataclasses import dataclass, field
from typing import Any

from ckptkit.core.findings import Finding
from ckptkit.format.pytorch.nodes import Global


@dataclass(frozen=True, slots=True)
class Content:
    """A container, read.

    Attributes:
        value: the value of its main pickle, storages being `StorageRef`.
        container: what it is and which releases of torch write it, in words.
        globals_seen: every class and function that any of its pickles names.
        stored: bytes of its storages together.
        details: further facts, JSON-able.
        findings: what was odd.
    """

    value: Any
    container: str
    globals_seen: tuple[Global, ...] = ()
    stored: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
