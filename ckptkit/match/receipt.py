"""The record of a conversion: what was read, what was written, and what came from where."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = "ckptkit.convert/1"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file read or written: its path and size in bytes."""

    path: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor written.

    `source` is its name as read and `source_dtype` the dtype it had there; `digest` is the content digest as
    written, None unless a receipt file was asked for. `sources` are all names as read that it was made of, `rule`
    (file:line) and `operations` how; "" and () where nothing was done.
    """

    name: str
    source: str
    dtype: str
    source_dtype: str
    shape: tuple[int, ...]
    digest: str | None = None
    sources: tuple[str, ...] = ()
    rule: str = ""
    operations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a conversion did.

    Attributes:
        source, target: paths; source_format, target_format: registry names.
        inputs, outputs: the files read and written.
        section: section of the source that was read, "" for the whole.
        tensors: every tensor written; ties: tied name → the name it shares bytes with.
        left_out: what was not selected, in words; losses: code → count or 1 for each loss that was allowed.
        digest: content digest of the output, None unless a receipt file was asked for.
        verified: every byte was compared with its source.
        reference: the format's reference library opened the output (None: not asked for or not installed).
        version: ckptkit's.
        proved: what the model gave the same outputs as, None if that was not asked for.
        ran: a model whose last layer got another number of classes ran in onnxruntime, and gave outputs of the
            shapes that it declares (None: no such change, or it could not be run).
        fit: what became of each tensor of the target that it was fitted to (`Fitting.to_json`), None without one.
    """

    source: str
    source_format: str
    target: str
    target_format: str
    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]
    section: str
    tensors: tuple[TensorRecord, ...]
    ties: Mapping[str, str]
    left_out: tuple[str, ...]
    losses: Mapping[str, int]
    digest: str | None
    verified: bool
    reference: bool | None
    version: str
    proved: str | None = None
    fit: Mapping[str, Any] | None = None
    ran: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The receipt as JSON-able values, with its schema."""
        return {"schema": SCHEMA, **asdict(self)}

    def text(self) -> str:
        """The receipt as a JSON document."""
        return json.dumps(self.to_json(), indent=1) + "\n"
