"""Contracts: what a checkpoint must be, in a file that is read in review (`*.ckpt.yaml`).

    ckptkit-contract: 1
    checkpoint: model.safetensors        # which file it is about; optional
    ranges: {i: 0..31}
    dimensions: {d: 4096, vocab: any}    # any size, as long as all tensors agree
    tensors:
      model.embed_tokens.weight: bfloat16 [vocab, d]
      model.layers.{i}.self_attn.{q,o}_proj.weight: bfloat16|float16 [d, d]
      model.norm.weight: any [d]
      lm_head.weight: bfloat16 [vocab, ?]
    optional:                            # may be missing
      model.layers.{i}.self_attn.rotary_emb.inv_freq: any
    ties:
      - [lm_head.weight, model.embed_tokens.weight]
    metadata: {format: pt, license: any}
    forbidden: ["*.lora_A.*"]            # shell patterns
    unlisted: refuse                     # or allow: tensors that are not named
    policies: {dtypes: [bfloat16], max_size: 16GB, values: finite, globals: [argparse.Namespace]}
    digest: <what `ckptkit digest` prints>
    files:
      model.safetensors: {sha256: <64 digits>, size: 16060556376}

Patterns are described in `ckptkit.targets.pattern`. The dtype `float` means float64, float32, float16 or bfloat16,
`any` means every one. A shape may be left out; one of its sizes is a number, a
dimension, a multiple of one (`3*d`) or `?`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import TensorGraph
from ckptkit.core.names import natural
from ckptkit.targets.pattern import NAMES, expand, numbers
from ckptkit.targets.target import Policies, Size, Spec, Stored, Target, dtypes_text

VERSION = "1"
SUFFIX = ".ckpt.yaml"


class Entry(NamedTuple):
    """One line of a contract: a pattern of names, and what is expected of each."""

    pattern: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class Contract:
    """A contract as it is written; `target` is what it means.

    Attributes:
        path: the file it was read from; "" for none.
        checkpoint: the file or folder it is about, relative to its own folder; "" where it does not say.
        ranges: name → numbers as written (`0..31`).
        entries: the lines of `tensors` and of `optional`.
        comment: what stands above its first line.

    The others are as in `ckptkit.targets.target.Target`.
    """

    path: str = ""
    checkpoint: str = ""
    ranges: Mapping[str, str] = field(default_factory=dict)
    dimensions: Mapping[str, int | None] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    metadata: Mapping[str, str | None] = field(default_factory=dict)
    forbidden: tuple[str, ...] = ()
    unlisted: bool = False
    policies: Policies = field(default_factory=Policies)
    digest: str = ""
    files: Mapping[str, Stored] = field(default_factory=dict)
    comment: str = ""

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Contract":
        """Read a contract. Raises CkptError `contract-invalid` with file and line, `over-budget`, and what
        reading a file raises."""
        from ckptkit.targets.parsing import SIZE, parse

        file = File.at(fspath(path))
        if file.size > SIZE:
            raise CkptError("over-budget", f"a contract of {file.size:,} bytes", file.path)
        with file.open() as reader:
            data = reader.read(0, file.size)
        try:
            return parse(data.decode("utf-8"), file.path)
        except UnicodeDecodeError:
            raise CkptError("contract-invalid", "this is no UTF-8 text", file.path) from None

    @classmethod
    def parse(cls, text: str, path: str = "contract") -> "Contract":
        """As `load`, from a text; errors name `path`."""
        from ckptkit.targets.parsing import parse

        return parse(text, path)

    @classmethod
    def from_graph(cls, graph: TensorGraph) -> "Contract":
        """The contract that the checkpoint fits exactly: names, dtypes, shapes and ties; layers are folded."""
        from ckptkit.targets.capture import capture

        return capture(graph)

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write it. Raises CkptError `exists` unless `overwrite`, `name-unwritable`, `io-error`."""
        from ckptkit.core.staging import Staging

        text = self.text()
        with Staging(path, folder=False, overwrite=overwrite) as staging:
            (staging.path / "contract").write_text(text, "utf-8", newline="\n")
            staging.publish(["contract"])

    def text(self) -> str:
        """The contract as it is written to a file. Raises CkptError `name-unwritable`."""
        from ckptkit.targets.writing import text

        return text(self)

    def target(self) -> Target:
        """What it means, name by name. Raises CkptError `contract-invalid`, `over-budget`."""
        ranges = {name: numbers(written) for name, written in self.ranges.items()}
        tensors: dict[str, Spec] = {}
        for pattern, spec in self.entries:
            for name in expand(pattern, ranges):
                if name in tensors:
                    raise CkptError("contract-invalid", f"{name!r} is expected twice", self.path or None)
                tensors[name] = spec
            if len(tensors) > NAMES:
                raise CkptError("over-budget", f"more than {NAMES:,} names", self.path or None)
        return Target(
            self.path,
            "contract",
            tensors,
            self.dimensions,
            tuple(group for tie in self.ties for group in expand_ties(tie, ranges)),
            self.metadata,
            self.forbidden,
            self.unlisted,
            self.policies,
            self.digest,
            self.files,
        )


def expand_ties(tie: tuple[str, ...], ranges: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A group of patterns as groups of names. Raises CkptError `contract-invalid` if they are not as many each."""
    columns = [expand(pattern, ranges) for pattern in tie]
    if len({len(column) for column in columns}) > 1:
        raise CkptError(
            "contract-invalid", f"tied patterns stand for different numbers of names: {', '.join(tie)}"
        )
    return list(zip(*columns, strict=True))


_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_of(text: str) -> int | None:
    """Bytes of `16GB`, `500 MB`, `1000`; None if it is no size."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*(|kB|MB|GB|TB)", text, re.ASCII)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def size_text(nbytes: int) -> str:
    """The shortest exact spelling."""
    for unit, factor in reversed(_UNITS.items()):
        if nbytes and nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)


def spec_text(spec: Spec) -> str:
    """`float32 [vocab, d]`."""
    dtypes = dtypes_text(spec.dtypes)
    return dtypes if spec.shape is None else f"{dtypes} [{', '.join(map(dim_text, spec.shape))}]"


def dim_text(size: Size) -> str:
    """One size of a shape."""
    return "?" if size is None else str(size)


def ordered(names: Mapping[str, object]) -> list[str]:
    """Names as people count."""
    return sorted(names, key=natural)
