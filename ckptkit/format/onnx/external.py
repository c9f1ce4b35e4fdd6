"""External data: tensors whose bytes lie in files beside the model.

TensorProto.data_location = EXTERNAL and external_data entries (key → value, strings): `location` (a POSIX path
relative to the model's folder), `offset` and `length` in decimal; without `offset` the data starts at 0, without
`length` it reaches to the end of the file. The bytes have the form of raw_data. `checksum` (SHA-1 of the whole file)
is handed on unverified, as that costs reading everything; `basepath` is other tools' own.

Stricter than onnx: the length must be what dtype and shape ask, keys are unique, numbers are plain decimals, NUL and
in-memory markers are refused, and no path leaves the model's folder or, for a model reached through a link (a hub
cache), the folder of its real path. Sources: docs/ExternalData.md of onnx 1.23, external_data_helper.
"""

import os

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, beside_file, told
from ckptkit.core.findings import Finding
from ckptkit.core.tensor import Extent
from ckptkit.format.onnx.schema import PAIR
from ckptkit.format.onnx.wire import Span, Wire

_LARGEST_ALIGNMENT = 1 << 16


class DataFiles:
    """The data files of one model, each looked at once, and what of them is used."""

    def __init__(self, model: File) -> None:
        self._model = model
        self._files: dict[str, File] = {}
        self._used: dict[File, list[tuple[int, int, str]]] = {}
        self.checksums: dict[str, str] = {}  # path → what the model says is its SHA-1

    @property
    def files(self) -> tuple[File, ...]:
        return tuple(dict.fromkeys(self._files.values()))

    def locate(self, wire: Wire, entries: list[Span], nbytes: int, name: str) -> Extent:
        """Where a tensor of `nbytes` bytes lies. Raises CkptError `onnx-external`, `outside-folder`, `not-found`,
        `size-mismatch`, `truncated`."""
        found: dict[str, str] = {}
        for span in entries:
            pair = wire.message(span.start, span.end, PAIR)
            key = pair.get("key", "")
            if key in found:
                raise CkptError("onnx-external", f"external data with two values for {key!r}", name)
            found[key] = pair.get("value", "")
        file = self._file(found.get("location", ""), name)
        stated = found.get("checksum")
        if stated and self.checksums.setdefault(file.path, stated) != stated:
            raise CkptError(
                "onnx-external", f"another checksum of {file.path} than other tensors state", name
            )
        offset = _decimal(found, "offset", name) or 0
        length = _decimal(found, "length", name)
        if offset > file.size:
            raise CkptError(
                "truncated",
                f"external data starts at byte {offset} of {file.path}, which ends at {file.size}",
                name,
                "fetch the data file again; the download or copy is incomplete",
            )
        if length is None:
            length = file.size - offset
        if length != nbytes:
            raise CkptError(
                "size-mismatch", f"{length} bytes of external data, where dtype and shape need {nbytes}", name
            )
        if offset + nbytes > file.size:
            raise CkptError(
                "truncated",
                f"external data reaches to byte {offset + nbytes} of {file.path}, which ends at {file.size}",
                name,
                "fetch the data file again; the download or copy is incomplete",
            )
        used = self._used.setdefault(file, [])
        if nbytes:
            used.append((offset, offset + nbytes, name))
        return Extent(file, offset, nbytes)

    def _file(self, location: str, name: str) -> File:
        file = self._files.get(location)
        if file is not None:
            return file
        if not location:
            raise CkptError("onnx-external", "external data without a location", name)
        if location.startswith("#") or "_ORT_MEM_ADDR_" in location:
            raise CkptError("onnx-external", f"external data in the memory of a process: {location!r}", name)
        for model in dict.fromkeys((self._model.path, os.path.realpath(self._model.path))):
            try:
                path = beside_file(model, location)
            except CkptError as error:
                raise CkptError(error.code, error.message, name) from None
            if os.path.exists(path):
                file = File.at(path)
                with told(path):
                    same = file.inode == self._model.inode and os.path.samefile(path, self._model.path)
                if same:
                    raise CkptError("onnx-external", "external data within the model file itself", name)
                self._files[location] = file
                return file
        raise CkptError(
            "not-found",
            f"the model keeps weights in {location!r}, which is not beside it",
            name,
            f"put {location!r} into the folder of {self._model.path}",
        )

    def findings(self) -> list[Finding]:
        """What is odd about the data files: bytes that no tensor uses, ranges that overlap without being equal."""
        found = []
        for file, ranges in self._used.items():
            unused, end = 0, _header(file)
            last, previous = "the header", (0, 0)
            for start, stop, name in [*sorted(ranges), (file.size, file.size, "")]:
                if start > end:
                    unused += 0 if _is_padding(end, start) else start - end
                elif start < end and (start, stop) != previous:
                    found.append(
                        Finding(
                            "tensors-overlap",
                            "warning",
                            name,
                            f"shares some of its bytes in {file.path} with {last}",
                        )
                    )
                if stop >= end:
                    end, last = stop, name
                previous = (start, stop)
            if unused:
                found.append(
                    Finding(
                        "bytes-unclaimed",
                        "note",
                        file.path,
                        f"{unused} of {file.size} bytes belong to no tensor",
                        "converting the model writes a fresh data file without them",
                    )
                )
        return found


def _header(file: File) -> int:
    """Where the header of a data file ends that is a safetensors file; 0 in any other: its length, and JSON."""
    with file.open() as reader:
        head = reader.read(0, min(9, file.size))
    end = 8 + int.from_bytes(head[:8], "little")
    return end if head[8:] == b"{" and end <= file.size else 0


def _is_padding(end: int, start: int) -> bool:
    """Whether the gap is what aligning `start` takes: less than the largest power of two that divides it."""
    return start - end < min(start & -start, _LARGEST_ALIGNMENT)


def _decimal(found: dict[str, str], key: str, name: str) -> int | None:
    text = found.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20) or int(text) >= 1 << 63:
        raise CkptError("onnx-external", f"external data with the {key} {text[:40]!r}", name)
    return int(text)
