"""Pickle streams where loaders look for them: one, several behind each other, torch's legacy stream, joblib's.

A loader that meets an error has run what stands before it; one that is done with a stream may load the next. So
each stream is walked to where it stops, the bytes after it are tried again, and what then is left is searched.
"""

import re
from collections.abc import Callable
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.arrays import numpy_dtype, payload
from ckptkit.format.pytorch.machine import load
from ckptkit.format.pytorch.nodes import Dict, Global, Object, raw_bytes
from ckptkit.format.pytorch.refs import storage_dtype, storage_id
from ckptkit.format.pytorch.source import Held, Source
from ckptkit.verbs.scan.ledger import Ledger
from ckptkit.verbs.scan.passing import is_text
from ckptkit.verbs.scan.verdicts import JUDGED_BY_CALL, LOAD_FROM_BYTES
from ckptkit.verbs.scan.walker import Walk, walk

MAGIC = 0x1950A86A20F9469CFC6C
_WINDOW = 64 << 10
_STREAMS = 10_000  # behind each other
_SEARCHED = 1 << 20  # bytes behind a stream that are searched for others
_CANDIDATES = 16
_LINE = rb"[A-Za-z_][\w.]{0,99}+\n"  # bounded, and never tried shorter: long lines must not cost their square
_START = re.compile(rb"\x80[\x02-\x05]|(?:c|\(i?)" + _LINE + _LINE)
_NAME = re.compile(r"[^\W\d][\w.]*")
_JOBLIB = ("joblib.numpy_pickle", "NumpyArrayWrapper")

Examine = Callable[[Source, str], None]


class Pickles:
    """The streams of one source. `examine` looks at files that lie within them; `window` bytes are read at first."""

    def __init__(
        self,
        source: Source,
        where: str,
        ledger: Ledger,
        examine: Examine,
        *,
        script: bool = False,
        window: int = _WINDOW,
    ) -> None:
        self.source = source
        self.where = where
        self.ledger = ledger
        self.examine = examine
        self.script = script
        self.window = window
        self.budgets = ledger.budgets
        self.base = 0
        self.data = b""
        self.sound = True  # as far as the strict machine could see
        self.arrays: list[Walk] = []  # pickles within the last stream looked at, where joblib puts arrays

    def all(self) -> None:
        """Every stream from the beginning on, and what follows them."""
        first = self.stream(0)
        if first.problem:
            self.search(first.end)
            return
        if first.value == MAGIC:
            at = self.legacy(first.end)
        else:
            at = self.following(first.end)
        self.rest(at)

    def quietly(self) -> bool:
        """As `all`, if the source is a pickle beyond doubt, or does something before it ends as none; whether so."""
        found = self.look(0)
        if ((found.problem or found.oddities) and not self.acts(found)) or found.end < 4:
            return False
        self.all()
        return True

    def acts(self, found: Walk) -> bool:
        """Whether a loader would come to a call, or to a name that is more than two lines of some text."""
        named, called = found.reached
        if any(type(c.cls) is Global and _real(c.cls) for _, c in found.calls[:called]):
            return True
        names = [cls for cls in list(found.names)[:named] if _real(cls)]
        return bool(names) and not (is_text(self.source) and all(map(self.harmless, names)))

    def harmless(self, cls: Global) -> bool:
        return self.ledger.verdict(cls, script=self.script) != "code"

    def look(self, at: int) -> Walk:
        """Walk the stream at an offset of the source without entering it. Its `end` is an offset of the source."""
        size, most = self.source.size, self.ledger.budgets.pickle_bytes
        if not self.base <= at < self.base + len(self.data):
            self.move(at, self.window)
        self.sound = True
        self.budgets = self.ledger.for_pickle()
        while True:
            self.arrays = []
            found = self.fast(at) or walk(self.data, at - self.base, self.budgets, self.inline)
            end = self.base + len(self.data)
            if not found.truncated or end >= size or end - at > most:
                found.end += self.base
                self.ledger.steps -= found.end - at  # each step takes a byte at least
                return found
            self.move(at, max(_WINDOW, end - at) * 4)

    def fast(self, at: int) -> Walk | None:
        """The strict machine's view, which is quicker, where it suffices: all is sound and nothing but data."""
        if not self.sound:
            return None
        seen: list[Any] = []

        def note(pid: Any) -> object:
            seen.append(pid)
            return None

        try:
            found = load(self.data, persistent=note, budgets=self.budgets, start=at - self.base)
        except CkptError as error:
            self.sound = error.code == "truncated"
            return None
        for cls in found.globals_seen:
            plain = self.ledger.verdict(cls, script=self.script) == "data"
            if not plain or (cls.module, cls.name) in JUDGED_BY_CALL:
                return None
        names = dict.fromkeys(found.globals_seen, at)
        return Walk(names=names, persistent=seen, value=found.value, end=found.end)

    def stream(self, at: int, found: Walk | None = None) -> Walk:
        """Walk the stream at an offset, unless that is done, and enter what it does."""
        found = found or self.look(at)
        bad = self.ledger.stream(found, self.where, self.base, script=self.script)
        for inner in self.arrays:
            bad += self.ledger.stream(inner, f"{self.where}, array", self.base, script=self.script)
        if found.problem:
            code = "truncated" if found.truncated else "pickle-invalid"
            text = f"the pickle is read up to byte {found.end}: {found.problem}"
            self.ledger.add("unread", code, self.where, text)
        if found.disputed:
            text = f"loaders of files and of memory read different bytes: {found.disputed}"
            self.ledger.add("trick", "pickle-ambiguous", self.where, text)
        for oddity in found.oddities:
            text = f"no loader would read the whole pickle: {oddity}"
            self.ledger.add("unread", "pickle-invalid", self.where, text)
        self.within(found, bad)
        return found

    def within(self, found: Walk, bad: list[Object]) -> None:
        """Files that lie within a stream as byte strings and would be loaded."""
        for at, call in found.calls:
            if call.name != LOAD_FROM_BYTES:
                continue
            data = (
                raw_bytes(held)
                if (held := payload(call.args[0] if call.args else None)) is not None
                else None
            )
            place = f"{self.where}, byte {self.base + at}"
            if data is None:
                text = "would load a file within the pickle, from bytes that are not there as such"
                self.ledger.add("unknown", "runs-unknown", place, text, str(call.cls), True)
            elif self.ledger.open(place):
                self.examine(Held(data, place, place), f"{place}, within")
        for call in bad:
            for arg in call.args:
                held = payload(arg)
                data = raw_bytes(held) if held is not None and len(held) > 3 else None
                if data is not None and data[0] == 0x80 and self.ledger.open(self.where):
                    place = f"{self.where}, in an argument"
                    Pickles(Held(data, place, place), place, self.ledger, self.examine).quietly()

    def following(self, at: int) -> int:
        """Streams behind each other; where they end."""
        for _ in range(_STREAMS):
            if at >= self.source.size:
                return at
            found = self.look(at)
            if found.problem and not found.names:
                return at
            text = "another pickle follows the first one"
            self.ledger.add("note", "more-streams", f"{self.where}, byte {at}", text)
            self.stream(at, found)
            at = found.end
            if found.problem:
                return at
        return at

    def legacy(self, at: int) -> int:
        """The other four streams of torch's legacy format and its storages; where they end."""
        main = keys = Walk()
        for number in range(4):
            if at >= self.source.size:
                self.ledger.add("unread", "truncated", self.where, "the legacy stream ends early")
                return at
            found = self.stream(at)
            at = found.end
            if found.problem:
                return at
            main, keys = (found, keys) if number == 2 else (main, found)
        widths: dict[str, int] = {}
        for pid in main.persistent:
            try:
                ref = storage_id(pid)
            except CkptError:
                continue
            widths[ref.key] = 1 if ref.dtype is None else max(1, ref.dtype.bits // 8)
        for key in keys.value if isinstance(keys.value, list) else ():
            width = widths.get(str(key)) if isinstance(key, str | int) else None
            if width is None or at + 8 > self.source.size:
                self.ledger.add(
                    "unread",
                    "storage-missing",
                    self.where,
                    "the storages are not those that the pickle names",
                )
                return at
            count = int.from_bytes(self.source.read(at, 8), "little", signed=True)
            if count < 0 or at + 8 + count * width > self.source.size:
                self.ledger.add("unread", "truncated", self.where, "a storage passes the end of the file")
                return self.source.size
            at += 8 + count * width
        return at

    def rest(self, at: int) -> None:
        """What follows the last stream."""
        left = self.source.size - at
        if left <= 0:
            return
        data = self.source.read(at, min(left, _SEARCHED))
        if not data.strip(b"\0"):
            self.ledger.add("note", "bytes-unclaimed", self.where, f"{left} zero bytes follow the pickle")
            return
        text = f"{left} bytes follow the pickle at byte {at}, which loaders pass over"
        self.ledger.add("trick", "bytes-unclaimed", self.where, text)
        self.search(at)

    def search(self, at: int) -> None:
        """Streams that begin anywhere in the bytes from an offset on."""
        data = self.source.read(at, min(self.source.size - at, _SEARCHED))
        end = 0
        for number, match in enumerate(_START.finditer(data)):
            if number >= _CANDIDATES:
                return
            begin = match.start()
            if begin < end:
                continue
            place = f"{self.where}, byte {at + begin}"
            inner = Pickles(
                Held(data[begin : begin + _WINDOW], place, place), place, self.ledger, self.examine
            )
            found = inner.look(0)
            if found.names and not (found.problem and found.oddities):
                inner.stream(0, found)
                end = begin + found.end

    def inline(self, made: Object, at: int) -> int:
        """joblib writes an array's bytes into the stream, behind the wrapper that describes it."""
        if made.name != _JOBLIB or type(made.state) is not Dict:
            return at
        facts = {key: value for key, value in made.state.entries() if isinstance(key, str)}
        align, shape = facts.get("numpy_array_alignment_bytes"), facts.get("shape")
        width = _width(facts.get("dtype"))
        if width is None or type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
            return at
        if width == 0:  # objects: a pickle of their own
            inner = walk(self.data, at, self.budgets)
            self.arrays.append(inner)
            return inner.end
        if type(align) is int:
            at += 1 + (self.data[at] if at < len(self.data) else 0)
        for n in shape:
            width *= n
        return at + width

    def move(self, at: int, want: int) -> None:
        self.base = at
        self.data = self.source.read(at, min(want, max(self.source.size - at, 0)))


def _real(cls: Global) -> bool:
    """Whether a module and a class could have these names."""
    return bool(_NAME.fullmatch(cls.module) and _NAME.fullmatch(cls.name))


def _width(dtype: object) -> int | None:
    """Bytes of an element of a pickled numpy dtype, 0 for objects, None where it cannot be told."""
    found = numpy_dtype(dtype)
    if found is not None:
        return found[0].bits // 8
    if type(dtype) is not Object or not dtype.args or not isinstance(dtype.args[0], str):
        return None
    match = re.fullmatch(r"[<>|=]?([OSUVMm])(\d{0,9})", dtype.args[0])
    if match is None:
        return None
    if match[1] == "O":
        return 0
    return int(match[2] or 0) * (4 if match[1] == "U" else 1) or None


def torch_tar(source: Source, name: str, where: str, ledger: Ledger, examine: Examine) -> None:
    """A member of torch's tar archives: a count, then pickles with raw numbers between them."""
    pickles = Pickles(source, where, ledger, examine)
    head = pickles.stream(0)
    at = head.end
    count = head.value if type(head.value) is int and not head.problem else 0
    for _ in range(max(0, min(count, source.size))):
        found = pickles.stream(at)
        if found.problem or type(found.value) is not tuple or len(found.value) != 3:
            ledger.add("unread", "record-invalid", where, "an entry of the archive is not one")
            return
        at = found.end
        if name == "storages":
            try:
                dtype = storage_dtype(found.value[2])
            except CkptError as error:
                ledger.failed(error, where)
                return
            width = 1 if dtype is None else max(1, dtype.bits // 8)
            at += 8 + int.from_bytes(source.read(at, min(8, source.size - at)), "little") * width
        else:
            dims = int.from_bytes(source.read(at, min(4, source.size - at)), "little")
            at += 8 + 8 * (2 * dims + 1)
        if at > source.size:
            ledger.add("unread", "truncated", where, "an entry passes the end of its member")
            return
    if name == "storages" and at < source.size:
        at = pickles.stream(at).end
    pickles.rest(at)
