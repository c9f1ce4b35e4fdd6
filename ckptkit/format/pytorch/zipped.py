"""Pickles inside a zip archive and the storages they refer to (see `archive` for the layout).

A storage's member must have exactly the bytes that the pickle promises, and everything that names a key must
promise the same. torch itself maps deflated members as if they were not, and swaps no untyped storages of
big-endian files; here they are inflated and swapped.
"""

from struct import unpack_from
from typing import Any

from ckptkit.core.budgets import Budgets
from ckptkit.core.dtypes import DType
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.storage import FileStorage, Storage
from ckptkit.core.words import plural
from ckptkit.format.pytorch.archive import Archive
from ckptkit.format.pytorch.content import Content
from ckptkit.format.pytorch.legacy import conflict
from ckptkit.format.pytorch.machine import Unpickled, load
from ckptkit.format.pytorch.nodes import Global
from ckptkit.format.pytorch.refs import StorageRef, storage_id
from ckptkit.format.pytorch.source import Pickles, Span
from ckptkit.format.pytorch.zipfile_directory import DEFLATED


class ZipStorages:
    """Turns persistent ids into storages in a folder of the archive ("data/", "constants/").

    Attributes:
        refs: the storages asked for so far, by key.
        locations: devices they were saved from.
        deflated: names of those that are deflated.
        stored: bytes of all of them.
    """

    def __init__(self, archive: Archive, folder: str) -> None:
        self.archive = archive
        self.folder = folder
        self.refs: dict[str, StorageRef] = {}
        self.locations: set[str] = set()
        self.deflated: list[str] = []
        self.stored = 0
        self.file = archive.file
        self.entries = archive.entries
        self.swap = archive.big_endian
        self.classes: dict[Global, tuple[DType | None, int]] = {}  # storage class → type, bytes

    def refer(self, pid: Any) -> StorageRef:
        """What stands for a persistent id in the pickle."""
        known = None
        if type(pid) is tuple and len(pid) == 5 and type(pid[1]) is Global:
            word, cls, key, location, count = pid
            if word == "storage" and type(key) is str and type(location) is str and type(count) is int:
                known = self.classes.get(cls)
        if known is not None:  # a class met before, and nothing unusual about the rest
            dtype, width = known
            nbytes = count * width
        else:
            key, dtype, location, nbytes, view = storage_id(pid)
            if view is not None:
                raise CkptError("record-invalid", "a storage of a zip archive is a view", self.file.path)
            self.classes[pid[1]] = dtype, 1 if dtype is None else max(1, dtype.bits // 8)
        ref = self.refs.get(key)
        if ref is not None:
            if ref.dtype is not dtype or ref.nbytes != nbytes:
                raise conflict(key)
            return ref
        name = self.folder + key
        entry = self.entries.get(name)
        if entry is None:
            raise CkptError("storage-missing", f"the archive has no member {name!r}", self.file.path)
        method, _, size, offset = entry
        if size != nbytes:
            raise CkptError(
                "size-mismatch",
                f"storage {name!r} has {size} bytes, not the {nbytes} that the pickle promises",
                self.file.path,
            )
        storage: Storage
        if method == DEFLATED:
            storage = self.archive.storage(name)
            self.deflated.append(name)
        else:
            storage = FileStorage(self.file, offset, nbytes)
        self.stored += nbytes
        if location not in self.locations:
            self.locations.add(location)
        ref = self.refs[key] = StorageRef(storage, dtype, nbytes, self.swap, location, key)
        return ref

    def unused(self) -> list[str]:
        """Members of the folder that nothing asked for."""
        cut = len(self.folder)
        names = [name for name in self.archive.below(self.folder) if "/" not in name[cut:]]
        return [name for name in names if name[cut:] not in self.refs] if len(names) > len(self.refs) else []


def load_member(archive: Archive, name: str, storages: ZipStorages) -> Unpickled:
    """The value of a pickle in the archive. Raises what the machine and `ZipStorages.refer` raise."""
    data = archive.read(name, archive.budgets.pickle_bytes)
    return load(data, persistent=storages.refer, budgets=archive.budgets)


def read_zipped(archive: Archive) -> Content:
    """The content of data.pkl."""
    storages = ZipStorages(archive, "data/")
    main = load_member(archive, "data.pkl", storages)
    return describe(archive, [("data.pkl", main)], [storages], f"zip, {archive.era}")


def promised_size(span: Span, budgets: Budgets) -> int | None:
    """Least size of an archive that lost its end, told from the storages its first member promises.

    None if the first member is not a whole, stored data.pkl, as it is in all files of torch.save.
    """
    promised: dict[str, int] = {}

    def refer(pid: Any) -> None:
        found = storage_id(pid)
        promised[found.key] = found.nbytes

    try:
        header = span.read(0, 30)
        name_size, extra_size = unpack_from("<HH", header, 26)
        if header[8:10] != b"\0\0" or not span.read(30, name_size).endswith(b"/data.pkl"):
            return None
        end = Pickles(span, budgets).load(30 + name_size + extra_size, refer).end
    except CkptError:
        return None
    return end + sum(promised.values())


def describe(
    archive: Archive, pickles: list[tuple[str, Unpickled]], folders: list[ZipStorages], container: str
) -> Content:
    """The content of an archive whose pickles are read; its value is that of the first one."""
    findings = list(archive.findings)
    for name, loaded in pickles:
        left = archive.entries[name].size - loaded.end
        if left:
            findings.append(
                Finding("bytes-unclaimed", "warning", "", f"{left} bytes follow the end of the pickle {name}")
            )
    deflated = [name for storages in folders for name in storages.deflated]
    if deflated:
        findings.append(
            Finding(
                "zip-deflated",
                "warning",
                "",
                f"the archive was packed again, with {plural(len(deflated), 'storage')} deflated, such as "
                f"{deflated[0]!r}, and torch.load(mmap=True) reads wrong numbers from it",
                "`ckptkit convert` to a new .pt mends it",
            )
        )
    unused = [name for storages in folders for name in storages.unused()]
    if unused:
        nbytes = sum(archive.entries[name].size for name in unused)
        text = f"{len(unused)} storages belong to no tensor ({nbytes} bytes), such as {unused[0]!r}"
        findings.append(Finding("bytes-unclaimed", "warning", "", text))
    locations = set[str]().union(*(storages.locations for storages in folders))
    details: dict[str, Any] = {"locations": sorted(locations)}
    if archive.alignment:
        details["storage_alignment"] = archive.alignment
    if archive.big_endian:
        details["byteorder"] = "big"
    seen: dict[Global, None] = {}
    for _, loaded in pickles:
        seen |= dict.fromkeys(loaded.globals_seen)
    return Content(
        pickles[0][1].value,
        container,
        tuple(seen),
        sum(storages.stored for storages in folders),
        details,
        tuple(findings),
    )
