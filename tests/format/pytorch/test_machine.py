"""The pickle machine against Python's own pickle, and against streams that no pickler writes."""

import codecs
import collections
import pickle
import resource
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.arguments import unescaped
from ckptkit.format.pytorch.machine import Unpickled, load
from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set, Text, raw_bytes
from tests.format.pytorch.unpickling import plain

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**300), 2**300)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None, exclude_categories=[]), max_size=300)
    | st.binary(max_size=300)
    | st.complex_numbers(allow_nan=False)
)
_keys = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(_keys, inner, max_size=5)
        | st.sets(_keys, max_size=5)
        | st.builds(bytearray, st.binary(max_size=20))
    ),
    max_leaves=25,
)


@given(_values, st.integers(0, 5))
def test_gives_what_pickle_gives(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = load(data + b"more")
    assert plain(found.value) == value
    assert found.end == len(data)


@given(_values, st.integers(0, 5), st.data())
def test_any_cut_is_told(value: object, protocol: int, draw: st.DataObject) -> None:
    data = pickle.dumps(value, protocol)
    at = draw.draw(st.integers(0, len(data) - 1))
    with pytest.raises(CkptError) as caught:
        load(data[:at])
    assert caught.value.code in {"truncated", "pickle-invalid"}


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_one_clear_error(data: bytes) -> None:
    codes = {"truncated", "pickle-invalid", "pickle-unsupported", "over-budget"}
    found: object = None
    try:
        found = load(data, persistent=lambda pid: pid)
    except CkptError as error:
        found = error.code
    assert isinstance(found, Unpickled) or found in codes


@pytest.mark.parametrize("protocol", range(6))
def test_long_and_shared_values(protocol: int) -> None:
    shared = ["shared"]
    value = {
        "many": list(range(70_000)),
        "text": "é" * 70_000,
        "a": shared,
        "b": shared,
        "big": b"\xff" * 70_000,
    }
    found = load(pickle.dumps(value, protocol)).value
    assert plain(found) == value
    by_name = dict(found.entries())
    assert by_name["a"] is by_name["b"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_list_may_hold_itself(protocol: int) -> None:
    loop: list[Any] = []
    loop.append(loop)
    found = load(pickle.dumps(loop, protocol)).value
    assert found[0] is found


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"I1\n0I2\n.", 2),  # POP
        (b"I1\n(I2\nI3\n1.", 1),  # POP_MARK
        (b"I1\n(0.", 1),  # POP of a mark
        (b"I7\n2\x86.", (7, 7)),  # DUP
        (b"(lp0\nI1\naI2\na.", [1, 2]),
        (b"(I1\nI2\nl.", [1, 2]),
        (b"(S'a'\nI2\nd.", {"a": 2}),
        (b"I00\n.", False),
        (b"I01\n.", True),
        (b"I-5\n.", -5),
        (b"L-5L\n.", -5),
        (b"L99999999999999999999\n.", 99999999999999999999),
        (b"F1.5\n.", 1.5),
        (b"Va\\u00e9\n.", "aé"),
        (b'S"it\\\'s"\n.', "it's"),
        (b"I3\np70000\n0g70000\n.", 3),
        (b"\x80\x04(K\x01K\x02\x91.", {1, 2}),  # FROZENSET
        (b"\x80\x04\x8f(K\x01K\x02\x90.", {1, 2}),  # ADDITEMS
        (b"\x8b\x02\0\0\0\xff\xff.", -1),  # LONG4
        (b"\x8a\0.", 0),
        (b"\x8e\x02\0\0\0\0\0\0\0ab.", b"ab"),
        (b"\x8d\x02\0\0\0\0\0\0\0ab.", "ab"),
        (b"\x95\x03\0\0\0\0\0\0\0K\x01.", 1),
    ],
)
def test_opcodes(data: bytes, value: object) -> None:
    found = plain(load(data).value)
    assert found == value
    assert type(found) is type(value)
    assert pickle.loads(data) == value


def test_memoize_counts_what_is_in_the_memo() -> None:
    data = b"\x80\x04K\x01\x94K\x02\x94K\x03r\x64\0\0\0K\x04\x94h\x03h\0\x86."
    assert load(data).value == (4, 1) == pickle.loads(data)


def test_memo_indexes_in_any_order() -> None:
    """Dense and sparse entries are one memo, overwritten by the last PUT."""
    data = b"K\x0aq\x00K\x0bq\x05K\x0cq\x01K\x0dq\x000000h\x00h\x05h\x01\x87."
    assert load(data).value == (13, 11, 12) == pickle.loads(data)


def test_a_memo_index_is_a_key_and_no_size() -> None:
    """Python's own unpickler asks for 64 GiB here."""
    assert load(b"K\x05r\xff\xff\xff\xff0j\xff\xff\xff\xff.").value == 5


@pytest.mark.parametrize(
    "data",
    [
        b"(S'x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'x'\no.",
        b"cos\nsystem\n(S'x'\ntR.",
        b"cos\nsystem\nS'x'\n\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85}\x92.",
    ],
)
def test_calls_are_recorded_and_never_made(data: bytes) -> None:
    found = load(data)
    assert type(found.value) is Object
    assert found.value.args == ("x",)
    (name,) = found.globals_seen
    assert (name.module, name.name, name.called) == ("os", "system", True)


def test_names_that_are_popped_or_hidden_are_seen() -> None:
    data = b"cos\nsystem\n(S'x'\ntR0cbuiltins\neval\nq\x050(lcposix\nnever\n0."
    found = load(data)
    assert found.value == []
    assert [(str(name), name.called) for name in found.globals_seen] == [
        ("os.system", True),
        ("builtins.eval", False),
        ("posix.never", False),
    ]


def test_what_is_set_on_an_object() -> None:
    data = b"ca\nb\n)\x81}(S'k'\nI1\nubI5\naI6\naS'p'\nI7\ns."
    made = load(data).value
    assert type(made) is Object
    assert type(made.state) is Dict
    assert list(made.state) == ["k", 1]
    assert made.items == [5, 6]
    assert made.pairs == ["p", 7]


def test_persistent_ids_of_both_kinds() -> None:
    assert load(b"Pkey\n.", persistent=lambda pid: ("got", pid)).value == ("got", "key")
    assert load(b"K\x03Q.", persistent=lambda pid: ("got", pid)).value == ("got", 3)


@pytest.mark.parametrize(
    ("raw", "text"), [(b"abc", "abc"), ("é".encode(), "é"), (b"\xe9\xff", "éÿ"), (bytes(range(256)), None)]
)
def test_python_2_strings(raw: bytes, text: str | None) -> None:
    """UTF-8 as torch decodes it, Latin-1 where torch fails; the bytes stay at hand."""
    for data in (
        b"T" + struct.pack("<I", len(raw)) + raw + b".",
        *([b"U" + bytes([len(raw)]) + raw + b"."] if len(raw) < 256 else []),
        b"S'" + raw.replace(b"\\", b"\\\\").replace(b"'", b"\\'").replace(b"\n", b"\\n") + b"'\n.",
    ):
        found = load(data).value
        assert isinstance(found, str)
        assert raw_bytes(found) == raw
        assert type(found) is (str if raw.isascii() else Text)
        if text is not None:
            assert found == text


def _nested(open_: bytes, close: bytes, depth: int = 1_000_000) -> bytes:
    return open_ * depth + close * depth


_HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "truncated"),
    "no stop": (lambda: b"K\x01", "truncated"),
    "nothing to stop with": (lambda: b".", "pickle-invalid"),
    "empty stack": (lambda: b"K\x01\x86.", "pickle-invalid"),
    "no mark": (lambda: b"t.", "pickle-invalid"),
    "call below a mark": (lambda: b"cos\nsystem\n(R.", "pickle-invalid"),
    "not an opcode": (lambda: b"\xff.", "pickle-invalid"),
    "protocol 9": (lambda: b"\x80\x09K\x01.", "pickle-invalid"),
    "memo never set": (lambda: b"h\x05.", "pickle-invalid"),
    "memo never set, text": (lambda: b"g5\n.", "pickle-invalid"),
    "memo index negative": (lambda: b"K\x01p-1\n.", "pickle-invalid"),
    "memo index unicode digits": (lambda: "K\x01p²\n.".encode(), "pickle-invalid"),
    "names that are numbers": (lambda: b"\x80\x04K\x01K\x02\x93.", "pickle-invalid"),
    "names that are bytes": (lambda: b"\x80\x04C\x02osC\x06system\x93.", "pickle-invalid"),
    "arguments that are a list": (lambda: b"cos\nsystem\n]R.", "pickle-invalid"),
    "state of a dict": (lambda: b"}}b.", "pickle-invalid"),
    "item of a tuple": (lambda: b")K\x01a.", "pickle-invalid"),
    "item of a dict": (lambda: b"}K\x01a.", "pickle-invalid"),
    "key of a list": (lambda: b"]K\x01K\x02s.", "pickle-invalid"),
    "key of a string": (lambda: b"U\x01xK\x01K\x02s.", "pickle-invalid"),
    "key without value": (lambda: b"}(K\x01u.", "pickle-invalid"),
    "dict of three": (lambda: b"(K\x01K\x02K\x03d.", "pickle-invalid"),
    "instance of nothing": (lambda: b"(o.", "pickle-invalid"),
    "set items of a list": (lambda: b"](K\x01\x90.", "pickle-invalid"),
    "persistent id": (lambda: b"Pkey\n.", "pickle-invalid"),
    "extension": (lambda: b"\x82\x01.", "pickle-unsupported"),
    "extension 4": (lambda: b"\x84\x01\0\0\0.", "pickle-unsupported"),
    "out of band": (lambda: b"\x80\x05\x97.", "pickle-unsupported"),
    "readonly buffer": (lambda: b"\x80\x05C\x01a\x98.", "pickle-unsupported"),
    "string past the end": (lambda: b"X\xff\xff\xff\x7fabc.", "truncated"),
    "bytes past the end": (lambda: b"\x8e" + b"\xff" * 8 + b".", "truncated"),
    "bytearray past the end": (lambda: b"\x96" + b"\xff" * 7 + b"\x7f.", "truncated"),
    "long past the end": (lambda: b"\x8a\x20abc.", "truncated"),
    "frame past the end": (lambda: b"\x80\x04\x95" + b"\xff" * 8 + b"K\x01.", "truncated"),
    "negative long": (lambda: b"\x8b\xff\xff\xff\xff.", "pickle-invalid"),
    "long of two gigabytes": (lambda: b"\x8b\xff\xff\xff\x7f" + bytes(1 << 20) + b".", "truncated"),
    "endless digits": (lambda: b"I" + b"9" * (1 << 20), "truncated"),
    "many digits that are none": (lambda: b"I" + b"9" * 400 + b"x\n.", "pickle-invalid"),
    "no digits": (lambda: b"Ix\n.", "pickle-invalid"),
    "arabic digits": (lambda: "I٣\n.".encode(), "pickle-invalid"),
    "no float": (lambda: b"F__\n.", "pickle-invalid"),
    "bad UTF-8": (lambda: b"X\x02\0\0\0\xff\xfe.", "pickle-invalid"),
    "bad name": (lambda: b"c\xff\nx\n.", "pickle-invalid"),
    "bad escape": (lambda: b"S'\\x'\n.", "pickle-invalid"),
    "no quotes": (lambda: b"Sabc\n.", "pickle-invalid"),
    "endless name": (lambda: b"c" + b"a" * (1 << 20) + b"\nb\n.", "over-budget"),
    "marks": (lambda: b"(" * 5_000_000 + b".", "over-budget"),
    "objects": (lambda: b"]" * 8_000_000 + b".", "over-budget"),
    "copies": (lambda: b"]" + b"2a" * 3_000_000 + b".", "over-budget"),
    "one-tuples": (lambda: b")" + b"\x85" * 8_000_000 + b".", "over-budget"),
    "calls": (lambda: b"cos\nsystem\nq\0)R" + b"h\0)R" * 1_000_000 + b".", "over-budget"),
    "popped lists": (lambda: b"(0" * 500_000 + b"]0" * 800_000 + b"K\x01.", "over-budget"),
}


@pytest.mark.parametrize("protocol", range(5))
def test_an_integer_beyond_the_budget_is_a_value_unknown(protocol: int) -> None:
    """It is never worked out, which would take the square of its length, and the rest is read."""
    data = pickle.dumps({"huge": 10**400, "low": -(10**400), "small": 2**63}, protocol)
    assert plain(load(data).value) == {"huge": None, "low": None, "small": 2**63}
    start = time.process_time()
    long = load(b"(I" + b"9" * (4 << 20) + b"\n\x8b\0\0\x40\0" + b"\xff" * (4 << 20) + b"K\x01l.").value
    assert plain(long) == [None, None, 1]
    assert time.process_time() - start < 0.5


def test_a_checkpoint_with_a_huge_integer_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"seed": 10**400, "step": 3}))
    leaves = {leaf.path: leaf for leaf in ck.read(tmp_path / "a.pkl").objects}
    assert (leaves["seed"].type, leaves["seed"].value) == ("int", None)
    assert leaves["step"].value == 3


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_streams_end_in_one_clear_error(name: str) -> None:
    make, code = _HOSTILE[name]
    data = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(CkptError) as caught:
        load(data)
    assert caught.value.code == code
    assert len(caught.value.message) < 200
    assert time.process_time() - start < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_values_may_nest_without_end() -> None:
    """A tuple nested a quarter million deep kills `hash`, `repr` and `==`; nothing here touches it."""
    deep = load(b")" + b"\x85" * 250_000 + b".").value
    assert type(deep) is tuple
    keyed = load(b"}" + b")" + b"\x85" * 250_000 + b"K\x01s.").value
    assert type(keyed) is Dict
    assert len(keyed) == 2


def test_keys_are_not_hashed() -> None:
    """Colliding integers make a dict quadratic, a tuple shared with itself makes `hash` exponential."""
    modulus = (1 << 61) - 1
    numbers = b"".join(
        b"\x8a\x10" + (i * modulus).to_bytes(16, "little", signed=True) + b"N" for i in range(50_000)
    )
    start = time.process_time()
    assert len(load(b"}(" + numbers + b"u.").value) == 100_000
    shared = b")" + b"2\x86" * 60
    assert type(load(b"}" + shared + b"Ns.").value) is Dict
    assert type(load(b"\x8f(" + shared + b"\x90.").value) is Set
    assert time.process_time() - start < 1


def test_budgets_are_settable() -> None:
    with pytest.raises(CkptError, match="steps"):
        load(b"K\x01" * 100 + b".", budgets=Budgets(opcodes=50))
    with pytest.raises(CkptError, match="string"):
        load(b"X\x0a\0\0\0" + b"a" * 10 + b".", budgets=Budgets(string_bytes=9))


@pytest.mark.parametrize("protocol", range(6))
def test_instances(protocol: int) -> None:
    value = collections.OrderedDict([("a", 1), ("b", collections.Counter("xyx"))])
    assert plain(load(pickle.dumps(value, protocol)).value) == {"a": 1, "b": {"x": 2, "y": 1}}


def test_one_global_per_name() -> None:
    first, second = load(b"ca\nb\nca\nb\n\x86.").value
    assert first is second
    assert type(first) is Global


@given(
    st.lists(
        st.sampled_from([b"\\", b"x", b"n", b"0", b"7", b"8", b"a", b"f", b"'", b"\n", b"4", b"\xff"]),
        max_size=9,
    )
)
def test_escapes_of_byte_strings_are_pythons(parts: list[bytes]) -> None:
    text = b"".join(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected: bytes | None = codecs.escape_decode(text)[0]
        except ValueError:
            expected = None
    try:
        found: bytes | None = unescaped(text)
    except ValueError:
        found = None
    assert found == expected


def test_an_opcode_may_not_pass_the_end_of_its_frame() -> None:
    """Readers of streams and of memory would read different bytes."""
    body = b"\x8c\x0aaaaaabbbbb."
    for size, fine in ((len(body), True), (len(body) - 1, True), (5, False), (1, False)):
        data = b"\x80\x04\x95" + struct.pack("<Q", size) + body
        if fine:
            assert load(data).value == "aaaaabbbbb"
        else:
            with pytest.raises(CkptError) as refusal:
                load(data)
            assert refusal.value.code == "pickle-invalid"
    nested = b"\x80\x04\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 1) + b"N."
    with pytest.raises(CkptError):
        load(nested)
