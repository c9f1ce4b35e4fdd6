"""What a file is, by content, to each of the loaders that could open it; a file may be several things at once."""

import os
from collections.abc import Iterator

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, Reader, io_error
from ckptkit.core.options import ReadOptions
from ckptkit.core.words import plural
from ckptkit.format import registry
from ckptkit.format.pytorch.legacy import is_legacy
from ckptkit.format.pytorch.source import Source, Span
from ckptkit.format.sniff import Head, is_index, is_onnx, is_safetensors, is_tar, protobuf_fields
from ckptkit.verbs.scan.arrays import MAGIC, may_run, read_npy
from ckptkit.verbs.scan.inflating import COMPRESSED, PACKED, ZFILE
from ckptkit.verbs.scan.ledger import Ledger
from ckptkit.verbs.scan.models import Onnx, scan_safetensors
from ckptkit.verbs.scan.parts import Block, head, part, unpack
from ckptkit.verbs.scan.passing import is_harmless
from ckptkit.verbs.scan.pickles import Pickles, torch_tar
from ckptkit.verbs.scan.report import Kind
from ckptkit.verbs.scan.settings import SUFFIXES, scan_text
from ckptkit.verbs.scan.tars import scan_tar
from ckptkit.verbs.scan.zips import Zip, is_zip

_DEPTH = 8  # archives within archives
_PACKED = "a compressed file"
_NATIVE = (b"\x7fELF", b"MZ\x90\0", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xfe\xed\xfa\xcf")
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".bin", ".th", ".dat")
_PROTOCOLS = (b"\0", b"\1", b"\2", b"\3", b"\4", b"\5")
# What the reader says of files that it does not read, and the scan does.
_FOREIGN = ("compressed", "format-unknown", "format-unsupported", "not-a-checkpoint")
_TRICKS = frozenset(
    {
        "duplicate-name", "outside-folder", "tensors-overlap", "zip-ambiguous", "zip-duplicate", "zip-encrypted",
        "zip-mismatch", "zip-overlap",
    }
)  # fmt: skip
_EVERYTHING = ReadOptions(section="all", ambiguous="all")
_PLAIN = ("not-a-checkpoint", "format-unknown", "empty-file", "web-page", "lfs-pointer")
_OPAQUE = (".h5", ".hdf5", ".onnx", *_PICKLE_SUFFIXES)  # never passed over


class Scanner:
    """Looks at files and enters what it finds into the ledger."""

    def __init__(self, ledger: Ledger, *, crc: bool) -> None:
        self.ledger = ledger
        self.crc = crc
        self.depth = 0

    def path(self, path: str, *, lenient: bool = False) -> None:
        """One file; where it is `lenient` (one of a folder), a file that is no checkpoint is passed over."""
        ledger = self.ledger
        if not ledger.open(path):
            return
        try:
            file = File.at(path)
            ledger.begin(file.size)
            with file.open() as reader:
                known = self.content(Span.whole(reader), path, reader)
            if not known:
                self.other(file, path, lenient)
            elif known != [_PACKED]:
                self.read(file, path)
        except CkptError as error:
            ledger.add("unread", error.code, error.where or path, error.message)

    def read(self, file: File, path: str) -> None:
        """Let our own reader judge the file too: what it refuses is not clean, whatever the scan saw."""
        try:
            registry.identify(file).load().read(path, _EVERYTHING)
        except CkptError as error:
            if error.code in _FOREIGN or any(f.code == error.code for f in self.ledger.findings):
                return
            kind: Kind = "trick" if error.code in _TRICKS else "unread"
            self.ledger.add(kind, error.code, error.where or path, error.message)

    def other(self, file: File, path: str, lenient: bool) -> None:
        """A file that is nothing scanned here: code is told, other formats are unread, the rest has nothing to run."""
        name = os.path.basename(path).lower()
        with file.open() as reader:
            if name.endswith(SUFFIXES):
                return self.settings(Span.whole(reader), name, path, path)
            harmless = is_harmless(Span.whole(reader), name) and not name.endswith(_OPAQUE)
        try:
            found = registry.identify(file).name
        except CkptError as error:
            if lenient and name.endswith((".py", ".pyc")):
                text = "Python code, which runs only where it is trusted"
                self.ledger.add("note", "code-beside", path, text)
            elif not lenient or error.code not in _PLAIN:
                self.ledger.add("unread", error.code, path, error.message)
            elif not harmless:
                text = "a file of no known kind, and not plainly text, a picture or a tokenizer"
                self.ledger.add("unread", "format-unknown", path, text)
        else:
            if not (lenient and harmless and found == "pytorch"):  # two lines of text may name a class
                self.ledger.add("unread", "format-unsupported", path, "a format that a scan does not know")

    def settings(self, source: Source, name: str, where: str, beside: str | None = None) -> None:
        """A file that is a configuration by its name."""
        scan_text(source, name, where, self.ledger, beside=beside)

    def inner(self, source: Source, where: str) -> None:
        """A file within a file, known to be loaded."""
        if not self.nested(source, where):
            self.ledger.add("unread", "format-unknown", where, "a file within the file is of no known kind")

    def nested(self, source: Source, where: str) -> bool:
        if self.depth >= _DEPTH:
            self.ledger.add("unread", "over-budget", where, f"files are nested deeper than {_DEPTH}")
            return True
        self.depth += 1
        try:
            return bool(self.content(source, where, None))
        except CkptError as error:
            self.ledger.failed(error, where)
            return True
        finally:
            self.depth -= 1

    def content(self, source: Source, where: str, reader: Reader | None) -> list[str]:
        """Look at a source as everything that it could be. What it is."""
        begin = head(source)
        found = list(self.readings(source, begin, where, reader))
        if len(found) > 1:
            text = f"the file is {' and '.join(found)} at once; which, depends on the reader"
            self.ledger.add("trick", "polyglot", where, text)
        return found

    def readings(self, source: Source, begin: bytes, where: str, reader: Reader | None) -> Iterator[str]:
        """Each kind of file that this is; it is scanned as that when its name is given."""
        ledger = self.ledger
        if is_zip(source):
            members = list[str]()
            script = b"constants.pkl" in begin or _mentions(source, b"/constants.pkl")

            def visit(content: Source, place: str, name: str, storage: bool) -> None:
                members.append(name)
                self.member(content, place, name, storage, script)

            Zip(source, where, ledger, visit, self.crc).scan()
            code = [name for name in members if name.endswith((".py", ".pyc"))]
            of_models = [name for name in code if script and "/code/" in name]
            if of_models:
                text = f"{plural(len(of_models), 'file')} of code, which runs only where the model is called"
                ledger.add("note", "code-beside", where, text)
            if len(code) > len(of_models):
                text = "would import Python code of the archive, as torch.package and model servers do"
                ledger.add("code", "runs-code", where, text)
            yield "a zip archive"
        whole = Head(reader) if reader is not None else None
        if is_tar(Block(source)):
            scan_tar(source, where, ledger, self.tar_member)
            yield "a tar archive"
        if begin.startswith(MAGIC):
            self.npy(source, where)
            yield "a numpy array"
        elif whole is not None and is_safetensors(whole):
            assert reader is not None
            scan_safetensors(reader, where, ledger)
            yield "safetensors"
            pickles = Pickles(source, where, ledger, self.inner)
            if _is_pickle(begin) and pickles.look(0).names:  # its length may spell opcodes, by chance or not
                pickles.all()
                yield "a pickle"
        elif is_legacy(begin) or _is_pickle(begin):
            Pickles(source, where, ledger, self.inner).all()
            yield "a pickle"
        elif whole is not None and (is_onnx(whole) or _holds_graph(whole)):
            assert reader is not None
            Onnx(reader, where, ledger, crc=self.crc).scan()
            yield "an ONNX model"
        elif whole is not None and is_index(whole):
            self.settings(source, ".json", where, where)
            yield "an index"
        elif begin.startswith(_NATIVE):
            ledger.add("code", "native-code", where, "a program or library of native code")
            yield "native code"
        else:
            zfile = ZFILE.match(begin)
            packed = part(source, zfile.end(), source.size) if zfile else source
            for magic, make in COMPRESSED:
                if head(packed, len(magic)) == magic:
                    pieces = unpack(packed, make, ledger, where)
                    known = [self.nested(piece, where) for piece in pieces]
                    if not any(known):
                        text = "what is compressed in it is of no known kind"
                        ledger.add("unread", "format-unknown", where, text)
                    yield _PACKED
                    return
            for magic, what in PACKED:
                if begin.startswith(magic):
                    ledger.add("unread", "compressed", where, f"this is {what}, which a scan does not unpack")
                    yield what
                    return
            if begin[:1] not in b"{<#" and Pickles(source, where, ledger, self.inner).quietly():
                yield "a pickle"

    def member(self, source: Source, where: str, name: str, storage: bool, script: bool) -> None:
        """A member of a zip archive."""
        if storage and not may_run(head(source, len(MAGIC))):
            return
        if name.lower().endswith(("data.pkl", "constants.pkl")):  # torch does not mind upper case
            window = min(source.size, self.ledger.budgets.pickle_bytes)
            Pickles(source, where, self.ledger, self.inner, script=script, window=window).all()
        elif storage and head(source, len(MAGIC)) != MAGIC:
            Pickles(source, where, self.ledger, self.inner).quietly()
        elif name.endswith(".debug_pkl"):  # positions in TorchScript code, read by its own loader
            return
        elif name.endswith(SUFFIXES):
            self.settings(source, name, where)
        elif not self.nested(source, where):
            self.unknown(source, where, name)

    def tar_member(self, source: Source, where: str, name: str) -> None:
        if name in ("storages", "tensors"):
            torch_tar(source, name, where, self.ledger, self.inner)
        elif name.endswith(SUFFIXES):
            self.settings(source, name, where)
        elif not self.nested(source, where):
            self.unknown(source, where, name)

    def unknown(self, source: Source, where: str, name: str) -> None:
        """A member of no known kind."""
        if name.lower().endswith(_OPAQUE) or not is_harmless(source, name):
            self.ledger.add("unread", "format-unsupported", where, "a member of a kind that is not scanned")

    def npy(self, source: Source, where: str) -> None:
        """Arrays behind each other, as numpy.save appends them."""
        ledger, at = self.ledger, 0
        while True:
            rest = part(source, at, source.size - at)
            found = read_npy(rest)
            if found is None:
                ledger.add("unread", "header-invalid", where, "the header of the numpy array is damaged")
                return
            if found.end is None:  # objects, or something that is not plainly numbers
                Pickles(part(rest, found.start, rest.size), f"{where}, objects", ledger, self.inner).all()
                return
            at += found.end
            if at > source.size:
                ledger.add("unread", "truncated", where, "the numpy array passes the end of the file")
            if at >= source.size:
                return
            if source.read(at, min(len(MAGIC), source.size - at)) != MAGIC:
                text = f"{source.size - at} bytes follow the numpy array"
                ledger.add("trick", "bytes-unclaimed", where, text)
                self.nested(part(source, at, source.size - at), f"{where}, byte {at}")
                return
            if not ledger.open(where):
                return


def _holds_graph(head: Head) -> bool:
    """Whether onnx would find a graph among fields that it does not know, which fill the file."""
    fields = list(protobuf_fields(head))
    whole = bool(fields) and (len(fields) == 64 or fields[-1].start + fields[-1].length == head.size)
    return whole and all(f.number for f in fields) and any((f.number, f.wire) == (7, 2) for f in fields)


def _is_pickle(begin: bytes) -> bool:
    return begin[:1] == b"\x80" and begin[1:2] in _PROTOCOLS


def _mentions(source: Source, name: bytes) -> bool:
    tail = min(source.size, 1 << 20)
    return name in source.read(source.size - tail, tail)


def walk_folder(path: str, ledger: Ledger) -> Iterator[str]:
    """Every file below a folder, links to files included, links to folders not; in order of names."""
    todo = [path]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            ledger.failed(io_error(error, folder), folder)
            continue
        below = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != ".git":
                    below.append(entry.path)
            elif entry.is_dir():
                ledger.add("note", "passed-over", entry.path, "a link to a folder is not followed")
            elif entry.is_file():
                yield entry.path
            else:
                ledger.add("note", "passed-over", entry.path, "a link that leads nowhere, or no regular file")
        todo += reversed(below)
