"""Words and numbers for people."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.cli.text import Terminal, clean, columns, count, pad, shape, shorten, size
from ckptkit.core.jsonable import dumps


@given(st.text(st.characters()))
def test_what_is_clean_can_be_printed(text: str) -> None:
    assert clean(text).isprintable()
    if text.isprintable():
        assert clean(text) == text


@given(st.text(), st.integers(3, 40))
def test_shortened_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    text = clean(text)
    short = shorten(text, width)
    assert columns(short) <= width
    if columns(text) <= width:
        assert short == text
    elif text.isascii() and width > 6:
        assert short[0] == text[0]
        assert short[-1] == text[-1]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (16_384, "16.4 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (524_288_000, "524 MB"),
        (137_900_000_000, "138 GB"),
        (1 << 80, "1208926 EB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def test_counts_and_shapes() -> None:
    assert [count(n) for n in (0, 9999, 68_980_000_000, 109_482_240)] == ["0", "9999", "69.0 B", "109 M"]
    assert [shape(s) for s in ((), (3,), (2, 0), ("batch", None, 3))] == ["scalar", "3", "2×0", "batch×?×3"]


def test_wide_characters_take_two_columns() -> None:
    assert columns("日本") == 4
    assert pad("日本", 6) == "日本  "
    assert columns("e\u0301") == 1


def test_facts_break_between_values() -> None:
    narrow = Terminal(40)
    lines = narrow.fact("dtypes", ["float32 ×103", "int64 ×1", "bfloat16 ×20"])
    assert lines == ["dtypes      float32 ×103 · int64 ×1", "            bfloat16 ×20"]
    assert Terminal().fact("dtypes", ["a" * 100, "b"]) == ["dtypes      " + "a" * 100 + " · b"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"a": float("nan"), "b": [float("inf"), (-float("inf"), 1.5)]},
            {"a": "nan", "b": ["inf", ["-inf", 1.5]]},
        ),
        (
            {"s": {"b", "a"}, "c": 1 + 2j, "u": "\ud800\x1b"},
            {"s": ["a", "b"], "c": "(1+2j)", "u": "\ud800\x1b"},
        ),
    ],
)
def test_json_is_standard_json(value: object, expected: object) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(name)

    text = dumps(value)
    assert json.loads(text, parse_constant=no_constant) == expected
    assert text.isascii()
