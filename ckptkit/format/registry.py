"""The formats ckptkit knows, one line each, and those that plugins add.

A plugin is a distribution with an entry point in the group `ckptkit.formats` that names a `Format`; it is loaded
only when no format of our own claims a file, or to list the formats. Recognition is by content alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import Layout, WriteOptions
from ckptkit.format import sniff


class FormatModule(Protocol):
    """What a format's module has. `layout` may be missing: such a format is only read."""

    def read(self, path: str, options: ReadOptions) -> TensorGraph:
        """The tensor graph of one file; costs its header. Raises CkptError."""

    def layout(self, graph: TensorGraph, name: str, options: WriteOptions) -> Layout:
        """How the graph would be written to a target of this file name. Pure. Raises CkptError."""

    def open_with_reference(self, path: str) -> None:
        """Let the format's own library open a written file. Raises ImportError where it is not installed."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        name: kebab-case identifier, the `--to` value.
        title: for people.
        suffixes: of the files that hold it, with the dot; the first is what `--to` writes. They choose the
            format of a target, never of a source.
        module: dotted name of a `FormatModule`, imported when a file of the format is at hand.
        matches: whether a file of that content is this format; it may read a little.
        reads, writes: what is read and written, in words; "" for nothing.
        missing: what is not yet read or written, in words.
        needs: packages beyond the core that reading or writing needs.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    module: str
    matches: Callable[[sniff.Head], bool]
    reads: str = ""
    writes: str = ""
    missing: str = ""
    needs: tuple[str, ...] = ()

    def load(self) -> FormatModule:
        """The module that reads and writes it. Raises CkptError `package-missing`."""
        try:
            return import_module(self.module)
        except ModuleNotFoundError as error:
            raise CkptError(
                "package-missing",
                f"{self.title} needs the package {error.name}",
                None,
                f"pip install {' '.join(self.needs) or error.name}",
            ) from error


# fmt: off
FORMATS: tuple[Format, ...] = (
    Format("safetensors", "safetensors", (".safetensors",), "ckptkit.format.safetensors", sniff.is_safetensors,
           reads="all dtypes", writes="all of its dtypes; shards with an index"),
    Format("index", "index of shards", (), "ckptkit.format.shards", sniff.is_index,
           reads="index.json with .safetensors or .bin shards; Hugging Face folders"),
    Format("pytorch", "PyTorch", (".pt", ".pth", ".bin", ".ckpt", ".th", ".jit", ".pt2", ".pkl"),
           "ckptkit.format.pytorch", sniff.is_pytorch,
           reads="zip, legacy and tar files, TorchScript, torch.export, bare pickles; never runs them",
           writes="state dicts that torch.load(weights_only=True, mmap=True) opens"),
    Format("onnx", "ONNX", (".onnx",), "ckptkit.format.onnx", sniff.is_onnx,
           reads="inline and external weights, all dtypes, subgraphs and functions",
           writes="from ONNX: weights inline or external, the graph untouched",
           missing="text forms (.onnxtxt, .json); ONNX from PyTorch code"),
)
# fmt: on


_own_alone: ContextVar[bool] = ContextVar("own_alone", default=False)


@contextmanager
def without_plugins() -> Iterator[None]:
    """Within it no code of other distributions is looked for or loaded."""
    token = _own_alone.set(True)
    try:
        yield
    finally:
        _own_alone.reset(token)


def plugins() -> Iterator[Format]:
    """The formats that installed distributions add. Raises CkptError `plugin-broken`."""
    if _own_alone.get():
        return
    from importlib.metadata import entry_points

    for point in entry_points(group="ckptkit.formats"):
        try:
            found = point.load()
        except Exception as error:
            raise CkptError(
                "plugin-broken", f"the format plugin {point.name} fails: {error}", point.value
            ) from error
        if not isinstance(found, Format):
            raise CkptError("plugin-broken", f"the format plugin {point.name} is no Format", point.value)
        yield found


def every() -> Iterator[Format]:
    """Our own formats, then those of plugins, which are looked for only when they are asked for."""
    yield from FORMATS
    yield from plugins()


def named(name: str) -> Format:
    """The format of that name. Raises CkptError `format-unknown`."""
    for known in every():
        if known.name == name:
            return known
    raise CkptError("format-unknown", f"there is no format {name!r}", None, "`ckptkit formats` lists them")


def for_suffix(path: str) -> Format | None:
    """The format that a target of that name would get, or None. Compound suffixes (`.pth.tar`) count."""
    lower = path.lower()
    return next((f for f in every() if lower.endswith(f.suffixes)), None)


def identify(file: File) -> Format:
    """The format of a file, by content. Reads 4 KiB, and what a container needs.

    A file that is no checkpoint is said by name: raises CkptError `lfs-pointer`, `web-page`, `compressed`,
    `empty-file`, `zero-filled`, `format-unsupported` or `format-unknown`.
    """
    with file.open() as reader:
        head = sniff.Head(reader)
        for known in FORMATS:
            if known.matches(head):
                return known
        for known in plugins():
            if known.matches(head):
                return known
        from ckptkit.format.foreign import foreign

        refusal = foreign(head)
    claimed = for_suffix(file.path)
    if claimed is not None and refusal.code == "format-unknown":
        return claimed  # damaged at its very start: its reader says best what is wrong
    raise refusal
