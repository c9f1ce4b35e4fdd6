"""What people take for a checkpoint but is none that ckptkit reads, said by name with the next step."""

import re
from collections.abc import Callable
from typing import NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.format.sniff import Head, is_tar, protobuf_fields, tar_names, zip_directory, zip_first, zip_names

_AGAIN = "download it again"
_PARTIAL = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")


class _Magic(NamedTuple):
    """Bytes at an offset, and what to say."""

    offset: int
    magic: bytes
    code: str
    what: str
    hint: str = ""


_CONVERT = "save its weights as .safetensors with the library that made it"
_UNPACK = "unpack it and name the file inside"
# fmt: off
_MAGICS = (
    _Magic(0, b"\x1f\x8b",             "compressed", "a gzip file", "gunzip it first (tar xzf for a .tar.gz)"),
    _Magic(0, b"\x28\xb5\x2f\xfd",     "compressed", "a zstd file", "unzstd it first"),
    _Magic(0, b"\xfd7zXZ\0",           "compressed", "an xz file", "unxz it first"),
    _Magic(0, b"BZh",                  "compressed", "a bzip2 file", "bunzip2 it first"),
    _Magic(0, b"\x04\x22\x4d\x18",     "compressed", "an lz4 file", "unlz4 it first"),
    _Magic(0, b"7z\xbc\xaf\x27\x1c",   "compressed", "a 7-Zip archive", _UNPACK),
    _Magic(0, b"Rar!\x1a\x07",         "compressed", "a RAR archive", _UNPACK),
    _Magic(0, b"GGUF",                 "format-unsupported", "a GGUF file (llama.cpp)",
           "use the original .safetensors that it was made from"),
    _Magic(0, b"ggml",                 "format-unsupported", "a GGML file (llama.cpp before GGUF)"),
    _Magic(0, b"lmgg",                 "format-unsupported", "a GGML file (llama.cpp before GGUF)"),
    _Magic(0, b"fmgg",                 "format-unsupported", "a GGML file (llama.cpp before GGUF)"),
    _Magic(0, b"tjgg",                 "format-unsupported", "a GGML file (llama.cpp before GGUF)"),
    _Magic(0, b"\x89HDF\r\n\x1a\n",    "format-unsupported", "an HDF5 file (Keras .h5)", _CONVERT),
    _Magic(0, b"\x93NUMPY",            "format-unsupported", "a numpy array (.npy)",
           "numpy.load it and save it with safetensors.numpy.save_file"),
    _Magic(4, b"TFL3",                 "format-unsupported", "a TensorFlow Lite model", _CONVERT),
    _Magic(4, b"ET12",                 "format-unsupported", "an ExecuTorch program", _CONVERT),
    _Magic(0, b"PAR1",                 "not-a-checkpoint", "a Parquet table"),
    _Magic(0, b"ARROW1",               "not-a-checkpoint", "an Arrow file"),
    _Magic(0, b"SQLite format 3\0",    "not-a-checkpoint", "an SQLite database"),
    _Magic(0, b"%PDF-",                "not-a-checkpoint", "a PDF document"),
    _Magic(0, b"\x89PNG\r\n\x1a\n",    "not-a-checkpoint", "a PNG image"),
    _Magic(0, b"\xff\xd8\xff",         "not-a-checkpoint", "a JPEG image"),
    _Magic(0, b"\x7fELF",              "not-a-checkpoint", "a program or shared library"),
    _Magic(0, b"MZ",                   "not-a-checkpoint", "a Windows program"),
    _Magic(0, b"PK\x05\x06",           "not-a-checkpoint", "an empty zip archive"),
)
# Formats that are named when met but not read: name, title, suffixes.
UNREAD = (
    ("gguf",       "GGUF (llama.cpp)",              (".gguf",)),
    ("keras",      "Keras",                         (".keras", ".h5", ".hdf5")),
    ("numpy",      "numpy arrays",                  (".npy", ".npz")),
    ("flax",       "Flax msgpack, Orbax",           (".msgpack",)),
    ("tensorflow", "TensorFlow checkpoints, SavedModel, TensorFlow Lite", (".index", ".pb", ".tflite")),
    ("coreml",     "Core ML",                       (".mlmodel", ".mlpackage")),
    ("openvino",   "OpenVINO",                      (".xml",)),
    ("dcp",        "torch distributed checkpoints", (".distcp",)),
)
# fmt: on


def foreign(head: Head) -> CkptError:
    """The error that says what this file is. Its code is `format-unknown` where nothing is recognised."""
    if head.size == 0:
        return _error(head, "empty-file", "the file is empty", _AGAIN)
    for row in _MAGICS:
        if head.data.startswith(row.magic, row.offset):
            return _error(head, row.code, f"this is {row.what}", row.hint)
    for test in _TESTS:
        found = test(head)
        if found is not None:
            return found
    hint = _AGAIN if head.path.endswith(_PARTIAL) else ""
    begins = head.data[:16].hex(" ")
    return _error(
        head, "format-unknown", f"no format that ckptkit knows begins with the bytes {begins}", hint
    )


def _error(head: Head, code: str, message: str, hint: str = "") -> CkptError:
    return CkptError(code, message, head.path, hint or None)


def _zeros(head: Head) -> CkptError | None:
    if head.data.strip(b"\0"):
        return None
    samples = range(0, head.size, max(1, head.size // 16))
    if any(head.at(at, 4096).strip(b"\0") for at in samples):
        return _error(head, "zero-filled", "the file begins with zeros only: a download has holes", _AGAIN)
    return _error(head, "zero-filled", f"all {head.size:,} bytes are zeros: a download stopped here", _AGAIN)


_OID = re.compile(rb"^oid (sha256:[0-9a-f]{64})", re.MULTILINE)
_SIZE = re.compile(rb"^size (\d{1,20})", re.MULTILINE)
_LFS = b"version https://git-lfs"


def lfs_pointer(data: bytes) -> tuple[str, int] | None:
    """SHA-256 (hexadecimal digits) and size of the file that a git-LFS pointer stands for; None if it is none."""
    oid, size = _OID.search(data), _SIZE.search(data)
    if not data.startswith(_LFS) or oid is None or size is None:
        return None
    return oid[1].decode().removeprefix("sha256:"), int(size[1])


def _pointer(head: Head) -> CkptError | None:
    if head.data.startswith(b"# xet version"):
        return _error(head, "lfs-pointer", "this is a git-xet pointer, not the file itself", "git xet pull")
    if not head.data.startswith(_LFS):
        return None
    oid, size = _OID.search(head.data), _SIZE.search(head.data)
    facts = [f"of {int(size[1]):,} bytes"] if size else []
    facts += [f"({oid[1].decode()})"] if oid else []
    what = " ".join(["this is a git-LFS pointer to a file", *facts])
    return _error(head, "lfs-pointer", what, "git lfs pull fetches the file itself")


def _markup(head: Head) -> CkptError | None:
    text = head.data.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text.startswith(b"<"):
        return None
    lower = text.lower()
    title = re.search(rb"<title[^>]*>([^<]{1,200})", text, re.IGNORECASE)
    said = f" titled {_text(title[1].strip())}" if title else ""
    if re.match(rb"<(!doctype html|html|head|body|script|meta|!--)", lower):
        return _error(head, "web-page", f"this is a web page{said}, not the file", _LINK)
    if b"<error>" in lower:
        return _error(head, "web-page", "this is a server's error message (XML), not the file", _LINK)
    if b"<net " in lower:
        return _error(head, "format-unsupported", "this is an OpenVINO model description", _CONVERT)
    return _error(head, "not-a-checkpoint", "this is an XML file")


_LINK = "download it again from the link to the raw file; log in where the site asks for it"


def _zip(head: Head) -> CkptError | None:
    if not head.data.startswith(b"PK\x03\x04"):
        return None
    names = zip_names(zip_directory(head)) or [zip_first(head)]
    for suffix, what in _ZIPS.items():
        if any(name.endswith(suffix) for name in names):
            code = "not-a-checkpoint" if "/" in suffix or "[" in suffix else "format-unsupported"
            return _error(head, code, f"this is {what}", _CONVERT if code == "format-unsupported" else "")
    return _archive(head, "zip", names)


_ZIPS = {
    "model.weights.h5": "a Keras 3 model (.keras)",
    ".npy": "an archive of numpy arrays (.npz)",
    "META-INF/MANIFEST.MF": "a Java archive",
    ".dist-info/WHEEL": "a Python wheel",
    "[Content_Types].xml": "an Office document",
}


def _tar(head: Head) -> CkptError | None:
    return _archive(head, "tar", tar_names(head)) if is_tar(head) else None


_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".gguf", ".h5")


def _archive(head: Head, kind: str, names: list[str]) -> CkptError:
    inside = [name for name in names if name.endswith(_WEIGHTS)] or [n for n in names if not n.endswith("/")]
    shown = f"; it holds {_text(inside[0].encode())}" if inside else ""
    return _error(head, "not-a-checkpoint", f"this is a {kind} archive, no checkpoint{shown}", _UNPACK)


def _tensorflow(head: Head) -> CkptError | None:
    if head.size >= 48 and head.at(head.size - 8, 8) == bytes.fromhex("57fb808b247547db"):
        return _error(head, "format-unsupported", "this is the index of a TensorFlow checkpoint", _CONVERT)
    if head.data.startswith(b"model_checkpoint_path:"):
        what = "this names a TensorFlow checkpoint"
        return _error(head, "format-unsupported", what, _CONVERT)
    if re.search(r"\.data-\d{5}-of-\d{5}$", head.path):
        what = "by its name this is the data of a TensorFlow checkpoint"
        return _error(head, "format-unsupported", what, _CONVERT)
    return None


_ONNX_TEXT = re.compile(rb"""\s*[<{]?\s*"?ir_?version"?\s*:""", re.IGNORECASE)
_BINARY = "onnx.save(onnx.load(path), 'model.onnx') makes the binary form"


def _onnx(head: Head) -> CkptError | None:
    """An ONNX model as text, or a lone TensorProto: dimensions, a data type, then a tensor's other fields."""
    if _ONNX_TEXT.match(head.data):
        return _error(head, "format-unsupported", "this is an ONNX model in text form", _BINARY)
    fields = list(protobuf_fields(head))
    tensor = [field for field in fields if field.number > 1]
    if (
        tensor
        and tensor[0][:2] == (2, 0)
        and fields[-1].wire >= 0
        and fields[-1].start + fields[-1].length == head.size
        and all(2 < field.number <= 16 for field in tensor[1:])
    ):
        return _error(head, "format-unsupported", "this is a lone ONNX tensor (TensorProto), not a model")
    return None


# SavedModel: schema version 1, then one meta graph to the end. Core ML: a specification version, a description,
# then fields from 10 on, most of them in the hundreds.
def _protobuf(head: Head) -> CkptError | None:
    fields = list(protobuf_fields(head))
    if not fields or fields[-1].wire < 0 or fields[0][:2] != (1, 0):
        return None
    numbers = [field.number for field in fields]
    if set(numbers) == {1, 2} and fields[-1].start + fields[-1].length == head.size:
        return _error(head, "format-unsupported", "this is a TensorFlow SavedModel", _CONVERT)
    if any(200 <= number < 1000 for number in numbers):
        return _error(head, "format-unsupported", "this is a Core ML model", _CONVERT)
    return None


_MAPS = re.compile(rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa1-\xbf]|\xd9.)[\x20-\x7e]", re.DOTALL)


def _msgpack(head: Head) -> CkptError | None:
    """A map with text keys; flax stores arrays as extension type 1."""
    if _MAPS.match(head.data) and re.search(rb"\xc7.\x01|\xc8..\x01|\xc9....\x01", head.data, re.DOTALL):
        return _error(head, "format-unsupported", "this is a Flax checkpoint (msgpack)", _CONVERT)
    return None


def _plain_text(head: Head) -> CkptError | None:
    data = head.data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:
            return None
        text = data[: error.start].decode("utf-8")
    if any(char < " " and char not in "\t\n\r\f\x1b" for char in text):
        return None
    begins = f"it begins {_text(data.strip()[:60])}"
    if re.match(r"\s*(\{\s*[\"}]|\[\s*[\[{\"\d])", text):
        hint = "name the folder it stands in, or the weights file beside it"
        return _error(head, "not-a-checkpoint", f"this is a JSON file without weights; {begins}", hint)
    if head.size < 4096 and re.match(
        r"(entry not found|access to|invalid|not found|unauthorized|repository)", text.lower()
    ):
        return _error(head, "web-page", f"this is a server's refusal, not the file; {begins}", _LINK)
    return _error(head, "not-a-checkpoint", f"this is a text file; {begins}")


def _text(data: bytes) -> str:
    """Bytes from the file as they may be shown: quoted and escaped."""
    return ascii(data.decode("utf-8", "replace"))


_TESTS: tuple[Callable[[Head], CkptError | None], ...] = (
    _zeros,
    _pointer,
    _onnx,
    _markup,
    _zip,
    _tar,
    _tensorflow,
    _protobuf,
    _msgpack,
    _plain_text,
)
