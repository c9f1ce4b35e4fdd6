"""The reader against the safetensors library: what it accepts, what it refuses, and every byte of what it gives."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

import ckptkit as ck
from ckptkit.core.dtypes import BY_SAFETENSORS
from ckptkit.core.options import ReadOptions
from ckptkit.format import read_with
from ckptkit.format.safetensors.header import parse
from tests.support import ROOT

ROWS = [
    r for r in json.loads((ROOT / "fixtures/index.json").read_text("utf-8")) if "/safetensors/" in r["path"]
]
# Where ckptkit is stricter than the reference, as the format's text is.
STRICTER = {"duplicate_name", "duplicate_escaped", "duplicate_key"}


def reference(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """What the library makes of the bytes of a file; None where it refuses them."""
    try:
        return {name: (d["dtype"], d["shape"], bytes(d["data"])) for name, d in deserialize(data)}
    except SafetensorError:
        return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: Path(row["path"]).stem)
def test_the_reference_agrees_on_every_fixture(row: dict[str, Any]) -> None:
    path = ROOT / "fixtures" / row["path"]
    theirs = reference(path.read_bytes())
    if path.stem in STRICTER:
        assert theirs is not None
        assert "error" in row["expect"]
        return
    assert (theirs is None) == ("error" in row["expect"])
    if theirs is not None:
        ours = ck.read(path)
        plain = {name: t for name, t in ours.items() if name not in ours.ties()}
        assert {n: (t.dtype.safetensors, list(t.shape), t.tobytes()) for n, t in plain.items()} == theirs


def test_every_dtype_of_the_library_is_in_the_table() -> None:
    """The library names its dtypes in the message that refuses another one."""
    header = b'{"a":{"dtype":"X","shape":[],"data_offsets":[0,0]}}'
    with pytest.raises(SafetensorError) as refusal:
        deserialize(len(header).to_bytes(8, "little") + header)
    spelled = set(
        str(refusal.value).split("expected one of ")[1].split(" at line")[0].replace("`", "").split(", ")
    )
    assert spelled == set(BY_SAFETENSORS)
    assert len(spelled) == 22


names = st.text(max_size=6) | st.sampled_from(["a", "b", "__metadata__", "format"])
numbers = st.integers(-2, 20) | st.sampled_from([8.0, True, None, "8", 2**63, 2**64])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BY_SAFETENSORS, "f32", 1, None]),
        "shape": st.lists(numbers, max_size=3) | st.none(),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    },
    optional={"extra": st.recursive(st.none() | st.floats(allow_nan=False) | st.text(max_size=2), st.lists)},
)
strange = st.dictionaries(
    names, entries | st.dictionaries(st.text(max_size=2), st.text(max_size=2)), max_size=3
)


@st.composite
def valid(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header that tiles its buffer, in random order, and the size of that buffer."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(names.filter(lambda n: n != "__metadata__"), unique=True, max_size=5)):
        dtype = draw(st.sampled_from(sorted(BY_SAFETENSORS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        count = 1
        for size in shape:
            count *= size
        if count * BY_SAFETENSORS[dtype].bits % 8:
            shape, count = [*shape, 4], count * 4
        nbytes = count * BY_SAFETENSORS[dtype].bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(names, st.text(max_size=4), max_size=3) | st.none())
    order = draw(st.permutations(list(header)))
    return {name: header[name] for name in order}, end


def agree(text: bytes, size: int) -> None:
    """Our parser and the library both take the header, with equal results, or both refuse it."""
    data = len(text).to_bytes(8, "little") + text + bytes(size)
    theirs = reference(data)
    try:
        ours = parse(text, size, "x")
    except ck.CkptError as error:
        if error.code == "duplicate-name":
            return
        ours = None
    assert (ours is None) == (theirs is None)
    if ours is None or theirs is None:
        return
    assert {e.name: (e.dtype.safetensors, list(e.shape), e.end - e.begin) for e in ours.entries} == {
        name: (dtype, shape, len(data)) for name, (dtype, shape, data) in theirs.items()
    }
    begins = [(e.begin, e.end) for e in ours.entries]
    assert begins == sorted(begins)


@given(strange, st.integers(0, 24))
def test_strange_headers_are_judged_as_the_library_judges_them(header: dict[str, Any], size: int) -> None:
    agree(json.dumps(header, ensure_ascii=False).encode("utf-8", "replace"), size)


@given(valid(), st.booleans())
def test_good_headers_are_read_as_the_library_reads_them(
    made: tuple[dict[str, Any], int], escape: bool
) -> None:
    header, size = made
    text = json.dumps(header, ensure_ascii=escape).encode("utf-8", "replace")
    agree(text, size)


@given(valid(), st.randoms(use_true_random=False))
def test_damaged_headers_are_judged_as_the_library_judges_them(
    made: tuple[dict[str, Any], int], chance: random.Random
) -> None:
    header, size = made
    text = bytearray(json.dumps(header, ensure_ascii=False).encode("utf-8", "replace"))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(text))
        match chance.randrange(4):
            case 0:
                text[at] = chance.choice(b'{}[],:"0-1.eE \n\\u\x00\xff')
            case 1:
                del text[at]
            case 2:
                text.insert(at, chance.choice(b'{}[],:"0-1. \\'))
            case _:
                size = max(0, size + chance.choice((-1, 1)))
        if not text:
            return
    agree(bytes(text), size)


@pytest.mark.parametrize(
    "extra",
    [
        "[" * 125 + "]" * 125,
        "[" * 126 + "]" * 126,
        '{"":' * 125 + "1" + "}" * 125,
        '{"":' * 126 + "1" + "}" * 126,
        "9" * 308,
        "9" * 309,
        "-" + "9" * 309,
        "1e308",
        "[1e309]",
        '{"x": -1e309}',
        "1e-999",
        '"\\ud83d\\ude00"',
        '"\\ud83d"',
        '{"\\ude00": 1}',
        '{"x": 1, "x": 2}',
        "-0",
        "01",
        "nul",
        "[true, false, null]",
    ],
)
def test_unknown_fields_are_judged_as_the_library_judges_them(extra: str) -> None:
    agree(f'{{"a":{{"dtype":"U8","shape":[],"note":{extra},"data_offsets":[0,1]}}}}'.encode(), 1)


def test_order_is_that_of_the_bytes() -> None:
    graph = ck.read(ROOT / "fixtures/good/safetensors/reordered.safetensors")
    assert list(graph) == ["a", "b"]
    assert graph["a"].offset < graph["b"].offset


def test_metadata_and_ties() -> None:
    graph = ck.read(ROOT / "fixtures/good/safetensors/tied.safetensors")
    assert graph.metadata == {"format": "pt"}
    assert graph.ties() == {"lm_head.weight": "embed.weight"}


def test_a_section_other_than_the_whole_is_refused() -> None:
    path = ROOT / "fixtures/good/safetensors/tied.safetensors"
    assert list(ck.read(path, "all")) == list(ck.read(path))
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(path, "model")
    assert refusal.value.code == "section-unknown"


def test_budgets_bound_the_header() -> None:
    path = ROOT / "fixtures/good/safetensors/dtypes.safetensors"
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(path, budgets=ck.Budgets(header_bytes=100))
    assert refusal.value.code == "header-too-large"


def test_a_tail_of_zeros_is_told(tmp_path: Path) -> None:
    """A download that reserves its space first leaves a file of the right size."""
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"U8","shape":[8388608],"data_offsets":[0,8388608]}}'
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + b"\1" * 1000)
        file.truncate(8 + len(header) + 8388608)
    assert [f.code for f in ck.read(path).findings] == ["zero-filled"]
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert ck.read(path).findings == ()


def test_two_hundred_thousand_tensors_list_as_fast_as_the_library(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    header = ",".join(
        f'"layers.{i}.weight":{{"dtype":"F32","shape":[2,2],"data_offsets":[{i * 16},{i * 16 + 16}]}}'
        for i in range(200_000)
    ).encode()
    with path.open("wb") as file:
        file.write((len(header) + 2).to_bytes(8, "little") + b"{" + header + b"}")
        file.truncate(file.tell() + 200_000 * 16)

    def ours() -> float:
        start = time.perf_counter()
        graph = read_with(path, ReadOptions())
        assert len([(name, t.dtype.name, t.shape) for name, t in graph.items()]) == 200_000
        return time.perf_counter() - start

    def theirs() -> float:
        start = time.perf_counter()
        with safe_open(path, "np") as file:
            listed = [(n, (s := file.get_slice(n)).get_dtype(), s.get_shape()) for n in file.keys()]  # noqa: SIM118
        assert len(listed) == 200_000
        return time.perf_counter() - start

    pairs = [(ours(), theirs()) for _ in range(3)]
    assert min(a / b for a, b in pairs) < 2
