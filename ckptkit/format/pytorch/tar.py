"""The tar archive that torch wrote before 0.1.10.

    sys_info   pickle {'protocol_version': 1000, 'little_endian', 'type_sizes'}
    storages   pickle COUNT, then COUNT times: pickle (key, location, storage class) · int64 length · bytes;
               then pickle [(view key, key, offset, length), …], counted in elements
    tensors    pickle COUNT, then COUNT times: pickle (key, storage key, tensor class) · int32 dimensions ·
               4 bytes · int64 sizes · int64 strides · int64 offset
    pickle     the object; persistent ids are keys of tensors or storages, or ('module', class, file, source)

Keys are integers. Numbers are little-endian whatever machine wrote them. Only these four regular members are
read, in any order; extended headers of times are passed over, ones that rename or resize a member are refused.
Source: torch 2.13 `serialization._legacy_load`; POSIX ustar and pax.
"""

import re
from struct import unpack_from
from typing import Any

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.content import Content
from ckptkit.format.pytorch.nodes import Global, Object
from ckptkit.format.pytorch.refs import StorageRef, invalid, storage_dtype
from ckptkit.format.pytorch.source import Pickles, Source, Span

_BLOCK = 512
_MEMBERS = ("sys_info", "storages", "tensors", "pickle")
EXTENDED = 64 << 10  # bytes of an extended header
_PASSED_OVER = re.compile(
    rb"(?:\d+ (?:[acm]time|[ug]id|[ug]name|comment|hdrcharset|SCHILY\.\w+|LIBARCHIVE\.\w+)=[^\n]*\n)*"
)
_DIMENSIONS = 1_000
_AGAIN = "download or copy it again and compare sizes"


def read_tar(span: Span, budgets: Budgets) -> Content:
    """Read descriptions of all storages and tensors; their bytes stay where they are.

    Raises CkptError `truncated`, `tar-invalid`, `record-invalid`, `storage-missing`, `duplicate-name`,
    `view-invalid`, and what the pickle machine raises.
    """
    parts = _members(span, budgets)
    missing = [name for name in _MEMBERS if name not in parts]
    if missing:
        raise CkptError("tar-invalid", f"the tar archive has no member {missing[0]!r}", span.where)
    seen: dict[Global, None] = {}
    info = Pickles(parts["sys_info"], budgets).load(0)
    seen |= dict.fromkeys(info.globals_seen)
    storages = _storages(parts["storages"], budgets, seen)
    known: dict[int, object] = dict(storages)
    known |= _tensors(parts["tensors"], budgets, storages, seen)

    def refer(pid: Any) -> object:
        if type(pid) is tuple and len(pid) >= 2:
            return pid[1] if pid[0] == "module" else pid[0]  # a class whose source was saved
        found = known.get(_key(pid))
        if found is None:
            raise CkptError("storage-missing", f"the archive describes no tensor {pid!r}", span.where)
        return found

    main = Pickles(parts["pickle"], budgets).load(0, refer)
    seen |= dict.fromkeys(main.globals_seen)
    return Content(main.value, "tar, torch before 0.1.10", tuple(seen), parts["storages"].size)


def _members(span: Span, budgets: Budgets) -> dict[str, Span]:
    found: dict[str, Span] = {}
    at = 0
    for _ in range(budgets.entries):
        if at + _BLOCK > span.size:
            break
        header = span.read(at, _BLOCK)
        if header == bytes(_BLOCK):
            return found
        name, size, kind = _header(header, span)
        start, end = at + _BLOCK, at + _BLOCK + size
        at = end + -end % _BLOCK
        if end > span.size:
            raise CkptError(
                "truncated",
                f"the file is incomplete: member {name!r} ends at {end}, the file at {span.size}",
                span.where,
                _AGAIN,
            )
        if kind in b"xg":
            if size > EXTENDED or not is_passed_over(span.read(start, size)):
                raise CkptError("tar-invalid", "an extended header changes names or sizes", span.where)
        elif kind in b"0\0" and name in _MEMBERS:
            if name in found:
                raise CkptError("duplicate-name", f"two members are named {name!r}", span.where)
            found[name] = Span(span.reader, span.base + start, size)
        elif kind not in b"0\0" and name in _MEMBERS:
            raise CkptError("tar-invalid", f"member {name!r} is no regular file", span.where)
    if len(found) == len(_MEMBERS):
        return found
    raise CkptError("truncated", "the file is incomplete: the tar archive does not end", span.where, _AGAIN)


def is_passed_over(extended: bytes) -> bool:
    """Whether an extended header says nothing of what a member is called and where its bytes lie."""
    return _PASSED_OVER.fullmatch(extended) is not None


def _header(block: bytes, span: Span) -> tuple[str, int, bytes]:
    """Name, size and kind of a member."""
    try:
        check = int(block[148:156].strip(b" \0") or b"-1", 8)
        size = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        check = size = -1
    if size < 0 or check != sum(block[:148]) + sum(block[156:]) + 8 * 32:
        raise CkptError("tar-invalid", "a header of the tar archive is damaged", span.where)
    return block[:100].rstrip(b"\0").decode("utf-8", "replace").removeprefix("./"), size, block[156:157]


def _key(value: object) -> int:
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 20:
        return int(value)
    if type(value) is not int:
        raise invalid("a key is no number")
    return value


def _count(value: object, source: Source) -> int:
    if type(value) is not int or not 0 <= value <= source.size:
        raise invalid("a number of entries is none")
    return value


def _storages(source: Source, budgets: Budgets, seen: dict[Global, None]) -> dict[int, StorageRef]:
    pickles = Pickles(source, budgets)
    head = pickles.load(0)
    at = head.end
    found: dict[int, StorageRef] = {}

    def add(key: int, ref: StorageRef) -> None:
        if key in found:
            raise CkptError("duplicate-name", f"two storages have the key {key}", source.where)
        found[key] = ref

    for _ in range(_count(head.value, source)):
        entry = pickles.load(at)
        seen |= dict.fromkeys(entry.globals_seen)
        if type(entry.value) is not tuple or len(entry.value) != 3:
            raise invalid("a storage is not described by key, location and class")
        key, location, cls = entry.value
        dtype = storage_dtype(cls)
        width = 1 if dtype is None else max(1, dtype.bits // 8)
        (count,) = unpack_from("<q", source.read(entry.end, 8))
        at = entry.end + 8 + count * width
        if count < 0:
            raise invalid("a storage has a negative length")
        if at > source.size:
            raise CkptError("truncated", f"storage {key!r} passes the end of its member", source.where)
        place = str(location) if isinstance(location, str) else ""
        storage = source.storage(entry.end + 8, count * width)
        add(_key(key), StorageRef(storage, dtype, count * width, False, place, str(_key(key))))
    views = pickles.load(at)
    if type(views.value) is not list:
        raise invalid("the list of storage views is none")
    for view in views.value:
        if type(view) is not tuple or len(view) != 4 or any(type(n) is not int for n in view[2:]):
            raise invalid("a storage view is not (key, storage, offset, length)")
        root = found.get(_key(view[1]))
        if root is None or root.storage is None:
            raise CkptError("storage-missing", f"there is no storage {view[1]!r}", source.where)
        width = 1 if root.dtype is None else max(1, root.dtype.bits // 8)
        start, nbytes = view[2] * width, view[3] * width
        if start < 0 or nbytes < 0 or start + nbytes > root.nbytes:
            raise CkptError("view-invalid", f"a view passes the end of storage {view[1]!r}", source.where)
        inner = _slice(root, start, nbytes)
        add(_key(view[0]), StorageRef(inner, root.dtype, nbytes, False, root.location, str(view[0])))
    return found


def _slice(root: StorageRef, start: int, nbytes: int) -> Any:
    from ckptkit.core.storage import FileStorage

    storage = root.storage
    assert isinstance(storage, FileStorage)
    return FileStorage(storage.file, storage.offset + start, nbytes)


_REBUILD = Global("torch._utils", "_rebuild_tensor")


def _tensors(
    source: Source, budgets: Budgets, storages: dict[int, StorageRef], seen: dict[Global, None]
) -> dict[int, Object]:
    """Each tensor as the call that later versions of torch pickle."""
    pickles = Pickles(source, budgets)
    head = pickles.load(0)
    at = head.end
    found: dict[int, Object] = {}
    for _ in range(_count(head.value, source)):
        entry = pickles.load(at)
        seen |= dict.fromkeys(entry.globals_seen)
        if type(entry.value) is not tuple or len(entry.value) != 3:
            raise invalid("a tensor is not described by key, storage and class")
        key, owner, _ = entry.value
        ref = storages.get(_key(owner))
        if ref is None:
            raise CkptError("storage-missing", f"there is no storage {owner!r}", source.where)
        (dims,) = unpack_from("<i", source.read(entry.end, 4))
        if not 0 <= dims <= _DIMENSIONS:
            raise invalid(f"a tensor has {dims} dimensions")
        numbers = unpack_from(f"<{2 * dims + 1}q", source.read(entry.end + 8, 8 * (2 * dims + 1)))
        at = entry.end + 8 + 8 * (2 * dims + 1)
        if _key(key) in found or _key(key) in storages:
            raise CkptError("duplicate-name", f"two tensors have the key {key}", source.where)
        found[_key(key)] = Object(_REBUILD, (ref, numbers[-1], numbers[:dims], numbers[dims:-1]))
    return found
