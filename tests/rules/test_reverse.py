"""Backwards: exactly where that is possible, up to rounding when asked, refused with the rules' names otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.rules.outcome import RulesError
from ckptkit.rules.ruleset import Rules
from tests.rules.support import names, stored

SHAPE = (12, 4)
# Operations that are exact, on a matrix of 12×4, with the shape they leave.
EXACT: list[Any] = [
    "transpose",
    "neg",
    {"flip": 0},
    {"permute": [1, 0]},
    {"heads": {"dim": 0, "view": [2, -1, 3], "order": [2, 0, 1]}},
    {"heads": {"dim": 1, "view": [2, 2], "order": [1, 0]}},
    {"blocks": {"dim": 0, "order": [2, 0, 1]}},
    {"blocks": {"dim": 0, "sizes": [6, 4, 2], "order": [1, 2, 0]}},
    {"unsqueeze": [0, -1]},
    {"reshape": {"from": [12, 4], "to": [3, 16]}},
    {"unflatten": {"dim": 0, "sizes": [3, 4]}},
    {"pad": {"dim": 1, "before": 1, "after": 2}},
    {"cast": {"from": "float32", "to": "float64"}},
    {"part": {"dim": 0, "start": 2, "stop": "dim(0)//2", "ops": ["neg", {"flip": 1}]}},
    {"part": {"dim": 1, "start": 1, "ops": [{"part": {"dim": 0, "stop": 5, "ops": ["neg"]}}]}},
]
LOSSY: list[Any] = [
    {"slice": {"dim": 0, "stop": 2}},
    {"gather": {"dim": 0, "index": [1, 0]}},
    {"resize": {"dims": [0], "to": [3]}},
    "abs",
    "square",
    {"reshape": [48]},
    {"cast": "float16"},
    {"part": {"dim": 0, "start": 1, "ops": ["abs"]}},
]
APPROXIMATE: list[Any] = [
    {"add": -1},
    {"part": {"dim": 0, "start": 1, "ops": [{"add": 1}]}},
    {"multiply": 3},
    "exp",
    {"cast": {"from": "float32", "to": "float16"}},
]
INDEX = ["{i}", "{i+3}", "{n-1-i}", "{i:02}", "{2*i+1}", "{i//2}.{i%2}", "{t[i]}"]


@st.composite
def rule_files(draw: st.DrawFn) -> Rules:
    """Rules over l.{i}.qkv, l.{i}.{a|b|c}, e.{e}.{w1|w3}, one."""
    index = draw(st.sampled_from(INDEX))
    ops = draw(st.lists(st.sampled_from(EXACT[:2] + EXACT[4:5]), max_size=1))
    joined = draw(st.sampled_from([0, 1]))
    one = draw(st.sampled_from(EXACT))
    rules = [
        {
            "from": "l.{i}.qkv",
            "to": f"m.{index}.{{x:q|k|v}}",
            "split": {"over": "x", "dim": 0},
            "ops": ops[:0],
        },
        {"from": "l.{i}.{x:a|b|c}", "to": f"m.{index}.{{x|a=z,b=a,c}}", "ops": ops},
        {
            "from": {"name": "e.{e}.{x:w1|w3}", "ops": draw(st.sampled_from([[], ["transpose"], ["neg"]]))},
            "to": "experts",
            "concat": {"over": "x", "dim": joined, "sizes": "equal"},
            "stack": {"over": "e", "dim": draw(st.sampled_from([0, 1, -1]))},
        },
        {"from": ["u", "v"], "to": "uv", "concat": {"dim": 0, "sizes": [12, -1]}},
        {"from": "one", "to": ["once", "twice"], "ops": [one]},
        {"keep": "kept.{rest:**}"},
        {"tie": "tied", "to": "kept.a.b"},
        {"fill": "filled.{k}", "over": {"k": 2}, "shape": [3], "value": "arange"},
    ]
    if draw(st.booleans()):
        rules[2].pop("stack")
        rules[2]["to"] = "experts.{e}"
    let = {"n": ["count(l.{i})", "4"]}
    return Rules.of(draw(st.permutations(rules)), let=let, tables={"t": [3, 1, 0, 2]})


@given(rules=rule_files())
def test_back_and_forth_is_the_identity(rules: Rules, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(0)
    keys = [f"l.{i}.{x}" for i in range(4) for x in ("qkv", "a", "b", "c")]
    keys += [f"e.{e}.{x}" for e in range(3) for x in ("w1", "w3")] + ["u", "v", "one", "kept.a.b", "kept.c"]
    graph = stored(tmp_path_factory.mktemp("g"), {key: rng.normal(size=SHAPE).astype("f4") for key in keys})
    there = rules.apply(graph)
    back = rules.reversed()
    again = back.apply(there.graph).graph
    assert set(again) == set(graph)
    for name in graph:
        assert again[name].dtype is graph[name].dtype
        assert again[name].shape == graph[name].shape
        assert again[name].tobytes() == graph[name].tobytes(), name
    assert Rules.parse(back.text()).apply(there.graph).trace.keys() == again.keys()


@pytest.mark.parametrize("op", EXACT)
def test_exact_operations(op: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=SHAPE).astype("f4")
    graph = stored(tmp_path, {"a": array})
    rules = Rules.of([{"from": "a", "to": "b", "ops": [op]}])
    back = rules.reversed().apply(rules.apply(graph).graph).graph["a"]
    assert back.shape == SHAPE
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("op", APPROXIMATE)
def test_approximate_operations_need_consent(op: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=SHAPE).astype("f4")
    graph = stored(tmp_path, {"a": array})
    rules = Rules.of([{"from": "a", "to": "b", "ops": [op]}])
    with pytest.raises(RulesError) as caught:
        rules.reversed()
    assert [finding.code for finding in caught.value.findings] == ["rule-approximate"]
    back = rules.reversed(approximate=True).apply(rules.apply(graph).graph).graph["a"].numpy()
    assert np.allclose(back, array, rtol=1e-3, atol=1e-3)


def test_every_lossy_rule_is_named() -> None:
    lossy = [{"from": f"a{n}", "to": f"b{n}", "ops": [op]} for n, op in enumerate(LOSSY)]
    lossy += [
        {"from": "c.{i}", "to": "same"},
        {"from": ["d", "e"], "to": "de", "concat": {"dim": 0}},
        {"from": ["g", "v"], "to": "w", "weight_norm": {}},
        {"from": ["p", "q"], "to": "pq", "combine": {"with": "mean"}},
        {"from": "{i}.r", "to": "r", "same": {"over": "i"}},
        {"from": "f.{i}.{j}", "to": "f.{i+j}"},
    ]
    with pytest.raises(RulesError) as caught:
        Rules.of([*lossy, {"from": "fine", "to": "good"}]).reversed()
    assert [finding.code for finding in caught.value.findings] == ["rule-lossy"] * len(lossy)


def test_questions_are_asked_of_the_new_names() -> None:
    rules = Rules.of(
        [
            {"from": "layers.{i}.w", "to": "model.h.{n-1-i}.weight", "when": "present(head)"},
            {"from": "layers.{i}.w", "to": "headless.{i}", "when": "absent(head)"},
            {"from": "head", "to": "lm_head", "optional": "true"},
        ],
        let={"n": "count(layers.{i})", "d": "dim(head, 0)", "lost": "count(gone.{i})"},
    )
    back = rules.reversed()
    assert [str(value) for values in back.parsed.let.values() for value in values] == [
        "count(model.h.{i})",
        "dim(lm_head, 0)",
    ]
    source = names("layers.0.w", "layers.1.w", "head")
    there = rules.apply(source).graph
    assert list(back.apply(there).graph) == list(source)


def test_what_was_dropped_is_absent_and_copies_are_made_again() -> None:
    rules = Rules.of([{"keep": "a"}, {"drop": "b"}, {"drop": "c", "same_as": "a"}])
    graph = names("a", "b", "c")
    assert list(rules.reversed().apply(rules.apply(graph).graph).graph) == ["a", "c"]


def test_shared_sources_come_back_from_the_first_that_took_them() -> None:
    rules = Rules.of([{"shared": "a"}, {"from": "a", "to": "x"}, {"from": "a", "to": "y"}])
    graph = names("a")
    assert list(rules.reversed().apply(rules.apply(graph).graph).graph) == ["a"]
