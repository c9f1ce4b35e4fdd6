"""Short runs of the fuzzer, and generated files that follow the grammar of each format: a value or a CkptError.

The long runs are described in docs/security.md.
"""

import io
import json
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.format.pytorch.machine import load
from ckptkit.verbs.scan.walker import walk
from fuzz.__main__ import fuzz
from fuzz.targets import BUDGETS, TARGETS, described, pickle_machine

RUNS = {"scan": 150, "convert": 100}
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    done, finds = fuzz(name, RUNS.get(name, 800), 60, 2, None)
    assert done == RUNS.get(name, 800)
    assert finds == 0


# ------------------------------------------------------------------ pickles

_ARGUMENTS = {
    "uint1": st.integers(0, 255).map(lambda n: bytes([n])),
    "uint2": st.integers(0, 65535).map(lambda n: struct.pack("<H", n)),
    "int4": st.integers(-(2**31), 2**31 - 1).map(lambda n: struct.pack("<i", n)),
    "uint4": st.sampled_from([0, 1, 2, 300, 2**31, 2**32 - 1]).map(lambda n: struct.pack("<I", n)),
    "uint8": st.sampled_from([0, 1, 9, 2**32, 2**64 - 1]).map(lambda n: struct.pack("<Q", n)),
    "float8": st.floats(allow_nan=False).map(lambda x: struct.pack(">d", x)),
    "stringnl": st.text("ab\\x'", max_size=5).map(lambda t: f"'{t}'\n".encode()),
    "stringnl_noescape": st.sampled_from([b"os\n", b"0\n", b"x\n"]),
    "stringnl_noescape_pair": st.sampled_from(
        [b"os\nsystem\n", b"collections\nOrderedDict\n", b"torch\nSize\n"]
    ),
    "unicodestringnl": st.text("ab\\u0", max_size=6).map(lambda t: f"{t}\n".encode()),
    "decimalnl_short": st.sampled_from([b"0\n", b"01\n", b"-7\n", b"x\n", b"9" * 200 + b"\n"]),
    "decimalnl_long": st.sampled_from([b"0L\n", b"-7L\n", b"L\n"]),
    "floatnl": st.sampled_from([b"1.5\n", b"nan\n", b"?\n"]),
}


def _argument(kind: pickletools.ArgumentDescriptor | None) -> st.SearchStrategy[bytes]:
    if kind is None:
        return st.just(b"")
    if kind.name in _ARGUMENTS:
        return _ARGUMENTS[kind.name]
    width = 1 if kind.name.endswith("1") else 8 if kind.name.endswith("8") else 4
    return st.binary(max_size=9).map(lambda b: len(b).to_bytes(width, "little") + b)


def _opcode(op: pickletools.OpcodeInfo) -> st.SearchStrategy[bytes]:
    code = op.code.encode("latin-1")
    return _argument(op.arg).map(lambda argument: code + argument)


_OPCODES = st.one_of([_opcode(op) for op in pickletools.opcodes])
_PUSHES = st.sampled_from(
    [b"N", b"]", b"}", b")", b"(", b"K\x01", b"X\x01\0\0\0a", b"cos\nsystem\n", b"\x8f", b"\x94", b"2"]
)
PROGRAMS = st.lists(st.one_of(_PUSHES, _PUSHES, _OPCODES), max_size=40).map(lambda ops: b"".join(ops) + b".")


@settings(max_examples=400, deadline=None)
@given(PROGRAMS)
def test_any_program_of_opcodes(program: bytes) -> None:
    pickle_machine(program)


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner),
        st.frozensets(st.text()),
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(_VALUES, st.integers(0, 5))
def test_what_pickle_writes_is_walked_to_its_end(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    walked = walk(data, 0, BUDGETS)
    assert (walked.end, walked.problem, walked.oddities) == (len(data), "", [])
    read = load(data, budgets=BUDGETS)
    assert {str(cls) for cls in walked.names} == {str(cls) for cls in read.globals_seen}


# ------------------------------------------------------------------ files

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
_SIZE = st.one_of(st.integers(0, 40), st.sampled_from([-1, 2**31, 2**63, 2**64, 1.0, "1", None, True]))
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "U8", "F4", "F6_E2M3", "BOOL", "C64", "f32", ""]), _JSON),
        "shape": st.one_of(st.lists(_SIZE, max_size=4), _JSON),
        "data_offsets": st.one_of(st.lists(_SIZE, min_size=2, max_size=2), _JSON),
    },
    optional={"more": _JSON},
)
HEADERS = st.dictionaries(
    st.one_of(st.text(max_size=3), st.just("__metadata__")), st.one_of(_ENTRY, _ENTRY, _JSON), max_size=4
)


def reads(path: Path) -> None:
    """The file gives a graph, the same one twice, or is refused."""
    try:
        first = ck.read(path, "all")
    except ck.CkptError:
        return
    assert described(ck.read(path, "all")) == described(first)


@QUICK
@given(header=HEADERS, length=st.integers(-2, 60), off=st.integers(-9, 9))
def test_any_header_of_safetensors(tmp_path: Path, header: dict[str, object], length: int, off: int) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        struct.pack("<Q", max(0, len(text) + (off if off in (-9, 9) else 0))) + text + bytes(max(length, 0))
    )
    reads(path)
    ck.scan(path)


def small_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(8), zipfile.ZIP_DEFLATED)
    return out.getvalue()


ZIP = small_zip()
FIELDS = [
    (m, w)
    for at in (ZIP.find(b"PK\1\2"), 0, ZIP.find(b"PK\5\6"))
    for m, w in [(at + k, 2) for k in range(4, 22, 2)]
]
FIELDS += [(at, 4) for at, _ in FIELDS if at + 4 <= len(ZIP)]


@QUICK
@given(
    st.lists(
        st.tuples(st.sampled_from(FIELDS), st.sampled_from([0, 1, 8, 9, 0x801, 0xFFFF, 2**31, 2**32 - 1])),
        max_size=4,
    )
)
def test_any_field_of_an_archive(tmp_path: Path, changes: list[tuple[tuple[int, int], int]]) -> None:
    data = bytearray(ZIP)
    for (at, width), value in changes:
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    reads(path)
    ck.scan(path, crc=True)


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _field(number: int, inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return inner.map(lambda b: _varint(number << 3 | 2) + _varint(len(b)) + b)


def _number(number: int) -> st.SearchStrategy[bytes]:
    values = st.sampled_from([0, 1, 2, 16, 22, 2**31, 2**63, 2**64 - 1])
    return values.map(lambda n: _varint(number << 3) + _varint(n))


def _message(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(parts), max_size=6).map(b"".join)


_TEXT = st.sampled_from([b"", b"a", b"../x", b"\xff", b"location", b"offset", b"7", b"-1"])
_BYTES = st.binary(max_size=8)
_PAIR = _message(_field(1, _TEXT), _field(2, _TEXT))
_TENSOR = _message(
    _number(1),
    _number(2),
    _field(8, _TEXT),
    _field(9, _BYTES),
    _field(4, _BYTES),
    _number(14),
    _field(13, _PAIR),
)
_GRAPH = st.recursive(
    _message(_field(5, _TENSOR), _field(2, _TEXT)),
    lambda inner: _message(
        _field(5, _TENSOR),
        _field(1, _message(_field(4, _TEXT), _field(7, _TEXT), _field(1, _TEXT), _field(2, _TEXT),
                           _field(5, _message(_field(1, _TEXT), _number(20), _field(5, _TENSOR), _field(6, inner))))),
    ),
    max_leaves=4,
)  # fmt: skip
MODELS = st.tuples(_field(8, _message(_field(1, _TEXT), _number(2))), _field(7, _GRAPH)).map(
    lambda p: b"\x08\x08" + b"".join(p)
)


@QUICK
@given(MODELS)
def test_any_messages_of_a_model(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(model)
    reads(path)
    ck.scan(path)
