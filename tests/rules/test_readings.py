"""A name that a template can read in two ways is refused, and no template makes the search long."""

from itertools import product
from time import process_time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptkit.core.errors import CkptError
from ckptkit.rules.matcher import Matcher
from ckptkit.rules.ruleset import Rules
from ckptkit.rules.template import Hole, Template, template
from ckptkit.rules.values import Values
from tests.rules.support import code_of, codes, names

TEXTS = ["a", "aa", "ab", "b", "1", "11", "10", "a.a", ""]
NUMBERS = [str(n) for n in (*range(12), 100, 101, 110, 111)]


def holes() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(TEXTS), min_size=2, max_size=3, unique=True).map("|".join)


@st.composite
def templates(draw: st.DrawFn) -> str:
    kinds = draw(st.lists(st.sampled_from(["one", "int", "text"]), min_size=1, max_size=5))
    texts = st.sampled_from(["a", "1", ".", "0b"])
    parts = []
    for n, kind in enumerate(kinds):
        parts.append({"one": f"{{h{n}:{draw(holes())}}}", "int": f"{{h{n}}}", "text": draw(texts)}[kind])
    return "".join(parts)


def spellings(found: Template) -> dict[str, set[tuple[str, ...]]]:
    """Each name that the template stands for (numbers being few), with the texts of its holes."""
    choices = [
        [part] if isinstance(part, str) else part.options if part.kind == "one" else NUMBERS
        for part in found.parts
    ]
    made: dict[str, set[tuple[str, ...]]] = {}
    for texts in product(*choices):
        given_ = tuple(t for t, part in zip(texts, found.parts, strict=True) if isinstance(part, Hole))
        made.setdefault("".join(texts), set()).add(given_)
    return made


@given(templates())
def test_a_name_is_read_as_it_was_written_or_not_at_all(text: str) -> None:
    try:
        found = template(text)
    except CkptError:
        assume(False)
    assume(sum(hole.kind == "int" for hole in found.holes) < 4)
    matcher = Matcher(found, Values(names(), {}, {}, {}), ())
    for name, ways in list(spellings(found).items())[:200]:
        if code_of(matcher.match, name) == "rule-overlap":
            continue
        bound = matcher.match(name)
        assert bound is not None
        assert {tuple(str(bound[hole.name]) for hole in found.holes)} == ways


def test_names_run_together_are_not_taken_apart_by_guessing() -> None:
    rules = Rules.of([{"from": "a.{x:1|11}.{y:1|11}", "to": "{x:1|11}{y:1|11}"}])
    back = rules.reversed()
    assert list(rules.apply(names("a.11.1")).graph) == ["111"]
    assert codes(back, names("111")) == ["rule-overlap"]
    assert list(back.apply(names("1111")).graph) == ["a.11.11"]


HARD = {
    "texts that begin alike": "".join(f"{{h{n}:x|xx}}" for n in range(30)) + "z",
    "texts between texts": "".join(f"{{h{n}:x|xx}}x" for n in range(30)) + "z",
    "texts alike without digits": "n" + "".join(f".{{h{n}:1|2}}" for n in range(28)) + ".w",
    "texts that differ in digits": "n" + "".join(f"{{h{n}:1.|2.1.}}" for n in range(30)) + "w",
}


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_no_template_makes_the_search_long(text: str) -> None:
    graph = names("x" * 300, "n" + ".1" * 60 + ".q", "n" + "1." * 60 + "q")
    start = process_time()
    assert code_of(Rules.of([{"from": text, "to": "b"}], keep_others=True).apply, graph) in (
        "rule-invalid",
        "rule-unmatched",
    )
    assert process_time() - start < 1
