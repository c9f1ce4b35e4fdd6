"""A zip archive as torch uses it: one root folder, a few records, storages.

    ROOT/data.pkl           the pickle; ROOT/constants.pkl beside it in TorchScript
    ROOT/data/KEY           one storage each
    ROOT/version            number of the container's version, 1 to 10 (`.data/version` from torch.export)
    ROOT/byteorder          `little` or `big`; absent before torch 2.1, which means little
    ROOT/.format_version, ROOT/.storage_alignment    since torch 2.7

ROOT is whatever the first member's path begins with. torch refuses archives without it, with members outside
of it, or without a version; such files are read all the same, where only one reading is possible, and the
oddity is reported.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.storage import FileStorage, InflatedStorage
from ckptkit.core.words import plural
from ckptkit.format.pytorch.source import Span
from ckptkit.format.pytorch.zipfile_directory import DEFLATED, Entry, read_directory

OLD_EXPORT = "serialized_exported_program.json"
_MARKERS = ("data.pkl", "archive_format", OLD_EXPORT, "model.json")
_RECORD_BYTES = 64
_VERSIONS = range(1, 11)


@dataclass(frozen=True, slots=True)
class Archive:
    """An opened archive.

    Attributes:
        span: where it lies.
        entries: path below the root → member; members outside the root are left out.
        root: the root folder with its slash, or "" if there is none.
        version, format_version, alignment: what the records say; 0 where there is none.
        big_endian: whether numbers are stored big-endian.
        era: which releases of torch write such archives, in words.
        findings: oddities met so far.
    """

    span: Span
    budgets: Budgets
    entries: dict[str, Entry]
    root: str
    version: int
    format_version: int
    alignment: int
    big_endian: bool
    era: str
    findings: tuple[Finding, ...]

    @property
    def file(self) -> File:
        return self.span.file

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def below(self, folder: str) -> Iterator[str]:
        """Names of the members in a folder, which ends with a slash."""
        return (name for name in self.entries if name.startswith(folder))

    def read(self, name: str, limit: int) -> bytes:
        """All of a member, inflated. Raises CkptError `record-missing`, `over-budget` or what reading raises."""
        return _read(self.span, self.entries, name, limit, self.budgets)

    def storage(self, name: str) -> FileStorage | InflatedStorage:
        """The bytes of a member, unread. Raises CkptError `storage-missing`, `archive-bomb`."""
        entry = self.entries.get(name)
        if entry is None:
            raise CkptError("storage-missing", f"the archive has no member {name!r}", self.file.path)
        return _storage(self.file, entry, self.budgets)

    def nested(self, name: str) -> "Archive":
        """A member that is itself such an archive. Raises CkptError `zip-damaged` if it is deflated."""
        entry = self.entries[name]
        if entry.method == DEFLATED:
            raise CkptError("zip-damaged", "an archive within the archive is deflated", name)
        return open_archive(Span(self.span.reader, entry.offset, entry.size), self.budgets)


def open_archive(span: Span, budgets: Budgets) -> Archive:
    """Read directory and records.

    Raises CkptError `zip-…` (see `read_directory`), `zip-ambiguous` when two folders could be the checkpoint,
    `record-invalid` for records that torch could not have written.
    """
    directory = read_directory(span, budgets)
    path = span.file.path
    findings = list(directory.findings)
    root, below = _root(path, directory.entries)
    records = _Records(span, below, budgets)
    plain = OLD_EXPORT in below  # Python's zipfile wrote it: no root, and a version of something else
    if not root and not plain:
        findings.append(_odd("zip-root", "the archive has no top folder"))
    elif len(below) < len(directory.entries):
        other = next(name for name in directory.entries if not name.startswith(root))
        count = len(directory.entries) - len(below)
        findings.append(
            _odd("zip-root", f"outside the folder {root!r}: {plural(count, 'member')}, such as {other!r}")
        )
    if not directory.checksums:
        findings.append(
            Finding("checksums-missing", "note", "", "checksums are zero: torch was told not to compute them")
        )
    name = "version" if "version" in below else ".data/version"
    version = 0 if plain else records.number(name)
    if name not in below and not plain:
        findings.append(_odd("record-missing", "the record `version` is missing"))
    elif version not in _VERSIONS and not plain:
        raise CkptError("record-invalid", f"version {version} of the container is not known", path)
    return Archive(
        span,
        budgets,
        below,
        root,
        version,
        records.number(".format_version"),
        records.number(".storage_alignment"),
        records.big_endian(),
        _era(below, version),
        tuple(findings),
    )


@dataclass(frozen=True, slots=True)
class _Records:
    """The small members that describe the container."""

    span: Span
    entries: dict[str, Entry]
    budgets: Budgets

    def text(self, name: str) -> str:
        data = _read(self.span, self.entries, name, _RECORD_BYTES, self.budgets)
        return data.decode("ascii", "replace").strip()

    def number(self, name: str) -> int:
        """A record that is a number; 0 if there is none."""
        if name not in self.entries:
            return 0
        text = self.text(name)
        if not (text.isascii() and text.isdigit()):
            message = f"the record {name} should be a number, not {text!r}"
            raise CkptError("record-invalid", message, self.span.file.path)
        return int(text)

    def big_endian(self) -> bool:
        text = self.text("byteorder") if "byteorder" in self.entries else "little"
        if text not in {"little", "big"}:
            message = f"the record byteorder should be little or big, not {text!r}"
            raise CkptError("record-invalid", message, self.span.file.path)
        return text == "big"


def _odd(code: str, message: str) -> Finding:
    return Finding(
        code, "warning", "", f"{message}; torch refuses it", "`ckptkit convert` to a new .pt mends it"
    )


def _root(path: str, entries: dict[str, Entry]) -> tuple[str, dict[str, Entry]]:
    """The root folder with its slash and the members below it, named from there."""
    first = next(iter(entries), None)
    if first is None:
        raise CkptError("not-a-checkpoint", "the zip archive is empty", path)
    roots = dict.fromkeys(
        name[: name.rfind("/") + 1]
        for name in entries
        if name.endswith(_MARKERS) and name.count("/") < 2 and name[name.rfind("/") + 1 :] in _MARKERS
    )
    if not roots:
        raise CkptError(
            "not-a-checkpoint",
            f"this zip archive holds no PyTorch checkpoint (no data.pkl); its first member is {first!r}",
            path,
        )
    if len(roots) > 1:
        names = " and ".join(repr(root) for root in list(roots)[:2])
        raise CkptError("zip-ambiguous", f"the archive holds more than one checkpoint: {names}", path)
    (root,) = roots
    size = len(root)
    return root, {name[size:]: entry for name, entry in entries.items() if name.startswith(root)}


def _era(entries: dict[str, Entry], version: int) -> str:
    if ".storage_alignment" in entries or ".format_version" in entries:
        return "torch 2.7 or newer"
    if "byteorder" in entries:
        return "torch 2.1 or newer"
    return "torch 1.6 to 2.0" if version >= 3 else "torch 1.5 or older"


def _storage(file: File, entry: Entry, budgets: Budgets) -> FileStorage | InflatedStorage:
    if entry.method == DEFLATED:
        return InflatedStorage(file, entry.offset, entry.packed, entry.size, budgets)
    return FileStorage(file, entry.offset, entry.size)


def _read(span: Span, entries: dict[str, Entry], name: str, limit: int, budgets: Budgets) -> bytes:
    entry = entries.get(name)
    if entry is None:
        raise CkptError("record-missing", f"the archive has no member {name!r}", span.file.path)
    if entry.size > limit:
        raise CkptError(
            "over-budget", f"member {name!r} holds {entry.size} bytes, more than {limit}", span.file.path
        )
    if entry.method == DEFLATED:
        return bytes(_storage(span.file, entry, budgets).read(0, entry.size))
    return span.reader.read(entry.offset, entry.size)
