"""The stream that torch.save wrote before 1.6, and still writes on request.

    pickle 0x1950A86A20F9469CFC6C · pickle 1001 · pickle {'protocol_version', 'little_endian', 'type_sizes'} ·
    pickle OBJECT · pickle [KEY, …] · for each key: its length in elements (int64) and its bytes

Storages in OBJECT are persistent ids with a sixth item, None or a view (key, offset, length) of the storage;
`('module', class, file, source)` stands for a class whose source was saved. Nothing is aligned. Offsets are found
by walking from length to length.

Numbers are little-endian whatever machine wrote them, so `little_endian` is of no consequence, but for untyped
storages (uint16, float8, …), which are written as they lie in memory. Lengths, keys listed and keys used must
agree; torch itself leaves a storage that is used but not listed uninitialised. Source: torch 2.13
`serialization._legacy_load`, `torch/csrc/serialization.cpp`.
"""

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.words import plural
from ckptkit.format.pytorch.content import Content
from ckptkit.format.pytorch.nodes import Dict
from ckptkit.format.pytorch.refs import StorageRef, storage_id
from ckptkit.format.pytorch.source import Pickles, Source

MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_MAGIC = int.from_bytes(MAGIC[2:], "little")
_PROTOCOL = 1001


def is_legacy(head: bytes) -> bool:
    """Whether the first pickle of the file is torch's magic number, in any pickle protocol."""
    return MAGIC in head[:32] or head.startswith(b"L%dL\n" % _MAGIC)


def read_legacy(source: Source, budgets: Budgets) -> Content:
    """Read the pickles and find every storage. Costs the pickles and 8 bytes per storage.

    Raises CkptError `truncated`, `record-invalid`, `storage-missing`, `storage-unused`, `storage-conflict`,
    `size-mismatch`, `duplicate-name`, `view-invalid`, and what the pickle machine raises.
    """
    pickles = Pickles(source, budgets)
    magic = pickles.load(0)
    protocol = pickles.load(magic.end)
    info = pickles.load(protocol.end)
    if magic.value != _MAGIC or protocol.value != _PROTOCOL or type(info.value) is not Dict:
        raise CkptError("record-invalid", "the stream does not begin as torch's do", source.where)
    facts = {key: value for key, value in info.value.entries() if isinstance(key, str)}
    storages = Storages(swap_untyped=facts.get("little_endian") is False)
    main = pickles.load(info.end, storages.refer)
    listing = pickles.load(main.end)
    if type(listing.value) is not list:
        raise CkptError("record-invalid", "the list of storages is none", source.where)
    end = storages.place(source, listing.end, listing.value)
    findings: tuple[Finding, ...] = ()
    if end < source.size:
        text = f"{source.size - end} bytes follow the last storage"
        findings = (Finding("bytes-unclaimed", "warning", "", text),)
    streams = (magic, protocol, info, main, listing)
    return Content(
        main.value,
        "legacy stream, torch 0.1.10 to 1.5 (or written so on request)",
        tuple(dict.fromkeys(name for stream in streams for name in stream.globals_seen)),
        sum(ref.nbytes for ref in storages.refs.values()),
        {"locations": storages.locations()},
        findings,
    )


class Storages:
    """The storages that a legacy pickle refers to, placed once their lengths are read."""

    def __init__(self, swap_untyped: bool) -> None:
        self.swap_untyped = swap_untyped
        self.refs: dict[str, StorageRef] = {}
        self.views: dict[str, dict[str, tuple[StorageRef, int]]] = {}  # key → view key → view and its offset

    def refer(self, pid: object) -> object:
        """What stands for a persistent id in the pickle."""
        if type(pid) is tuple and len(pid) >= 2 and pid[0] == "module":
            return pid[1]
        key, dtype, location, nbytes, view = storage_id(pid)
        ref = self.refs.get(key)
        if ref is None:
            swap = dtype is None and self.swap_untyped
            ref = self.refs[key] = StorageRef(None, dtype, nbytes, swap, location, key)
        elif ref.dtype is not dtype or ref.nbytes != nbytes:
            raise conflict(key)
        if view is None:
            return ref
        name, offset, length = view
        width = 1 if dtype is None else max(1, dtype.bits // 8)
        if (offset + length) * width > nbytes:
            raise CkptError("view-invalid", f"the view {name!r} passes the end of storage {key!r}")
        new = StorageRef(None, dtype, length * width, ref.swap, location, name)
        part, start = self.views.setdefault(key, {}).setdefault(name, (new, offset * width))
        if part.nbytes != length * width or start != offset * width:
            raise conflict(name)
        return part

    def place(self, source: Source, at: int, keys: list[object]) -> int:
        """Find the storages of `keys` from `at` on; the end of the last one."""
        promised = at + sum(8 + ref.nbytes for ref in self.refs.values())
        done: set[str] = set()
        for listed in keys:
            key = str(listed) if type(listed) is int else listed
            if not isinstance(key, str):
                raise CkptError("record-invalid", "the key of a storage is no text", source.where)
            ref = self.refs.get(key)
            if ref is None:
                raise CkptError(
                    "storage-unused", f"storage {key[:80]!r} is listed but not used", source.where
                )
            if key in done:
                raise CkptError("duplicate-name", f"storage {key!r} is listed twice", source.where)
            done.add(key)
            if at + 8 > source.size:
                raise _incomplete(source, promised)
            count = int.from_bytes(source.read(at, 8), "little", signed=True)
            width = 1 if ref.dtype is None else max(1, ref.dtype.bits // 8)
            if count * width != ref.nbytes:
                raise CkptError(
                    "size-mismatch",
                    f"storage {key!r} holds {count} elements, not the {ref.nbytes // width} promised",
                    source.where,
                )
            at += 8
            if at + ref.nbytes > source.size:
                raise _incomplete(source, promised)
            ref.storage = source.storage(at, ref.nbytes)
            for part, start in self.views.get(key, {}).values():
                part.storage = source.storage(at + start, part.nbytes)
            at += ref.nbytes
        missing = self.refs.keys() - done
        if missing:
            raise CkptError(
                "storage-missing",
                f"the file lacks {plural(len(missing), 'storage')} that tensors use, such as {min(missing)!r}",
                source.where,
            )
        return at

    def locations(self) -> list[str]:
        """Devices that the storages were saved from."""
        return sorted({ref.location for ref in self.refs.values()})


def conflict(key: str) -> CkptError:
    return CkptError("storage-conflict", f"storage {key!r} is used with two lengths or element types")


def _incomplete(source: Source, promised: int) -> CkptError:
    return CkptError(
        "truncated",
        f"the file is incomplete: it has {source.size} of {promised} bytes",
        source.where,
        "download or copy it again and compare sizes",
    )
