"""Backwards: exactly where that is possible, up to rounding when asked, refused with the rules' names otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.rules.outcome import RulesError
from ckptkit.rules.ruleset import Rules
from tests.rules.support import code_of, names, stored

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


def test_a_count_is_asked_only_where_all_that_was_counted_has_gone() -> None:
    """The numbers of features.{i} do not all become numbers of layer.{i}: what counts these would be wrong."""
    rules = Rules.of(
        [
            {"from": "features.0.w", "to": "stem.w"},
            {"from": "features.{i}.w", "to": "layer.{i-1}.w", "when": "i > 0 and i < last"},
            {"from": "features.{last}.w", "to": "head.w"},
        ],
        let={"last": "count(features.{i})-1"},
    )
    graph = names("features.0.w", "features.1.w", "features.2.w", "features.3.w")
    there = rules.apply(graph).graph
    assert list(there) == ["stem.w", "layer.0.w", "layer.1.w", "head.w"]
    back = rules.reversed()
    assert code_of(back.apply, there) == "rule-value"
    assert list(back.apply(there, last=3).graph) == list(graph)


def test_what_was_dropped_is_absent_and_copies_are_made_again() -> None:
    rules = Rules.of([{"keep": "a"}, {"drop": "b"}, {"drop": "c", "same_as": "a"}])
    graph = names("a", "b", "c")
    assert list(rules.reversed().apply(rules.apply(graph).graph).graph) == ["a", "c"]


def test_shared_sources_come_back_from_the_first_that_took_them() -> None:
    rules = Rules.of([{"shared": "a"}, {"from": "a", "to": "x"}, {"from": "a", "to": "y"}])
    graph = names("a")
    assert list(rules.reversed().apply(rules.apply(graph).graph).graph) == ["a"]


# Operations on a matrix that do not state all that undoing them takes.
OPEN: list[Any] = [
    {"reshape": [48]},
    {"reshape": [-1, 2]},
    {"heads": {"dim": 0, "view": [2, -1, 3], "order": ["a", "1-a", 2]}},
    {"permute": ["a", "1-a"]},
    {"cast": "float64"},
]


@st.composite
def open_rule_files(draw: st.DrawFn) -> tuple[Rules, dict[str, tuple[int, ...]]]:
    """Rules without sizes, over layers that are of one width or of several, and the shapes that they are for."""
    layers = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    index = draw(st.sampled_from(INDEX))
    experts = draw(st.integers(1, 3))
    dim = draw(st.sampled_from([0, 1]))
    before = draw(st.sampled_from([[], ["transpose"], [{"reshape": [-1, 1, 3]}, {"squeeze": [1]}]]))
    rules = [
        {"from": ["l.{i}.q", "l.{i}.kv"], "to": f"m.{index}.qkv", "concat": {"dim": 0}},
        {"from": [{"name": "l.{i}.a", "ops": before}, {"name": "l.{i}.b", "ops": before}],
         "to": f"m.{index}.ab", "concat": {"dim": dim}},
        {"from": "e.{e}", "to": "experts", "concat": {"over": "e", "dim": 1}},
        {"from": "one", "to": "once", "ops": [draw(st.sampled_from(OPEN))]},
        {"from": "w.{x:u|v}", "to": "uv", "concat": {"over": "x", "dim": 0}, "when": "present(one)"},
        {"from": "w.{x:u|v}", "to": "never.{x}", "when": "absent(one)"},
    ]  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"one": SHAPE, "w.u": (2, 3), "w.v": (5, 3)}
    shapes |= {f"e.{e}": (2, e + 1) for e in range(experts)}
    for i, width in enumerate(layers):
        shapes |= {f"l.{i}.q": (width, 3), f"l.{i}.kv": (6 - width, 3)}
        tall = dim == 0 and before != ["transpose"]  # else the parts lie side by side
        shapes |= {f"l.{i}.a": (3, 3), f"l.{i}.b": (3 * width if tall else 3, 3)}
    let = {"n": "count(l.{i})", "a": "dim(w.u, 0) - 1"}
    return Rules.of(rules, let=let, tables={"t": [3, 1, 0, 2]}), shapes


@given(case=open_rule_files())
def test_what_rules_leave_open_is_read_off_what_they_apply_to(
    case: tuple[Rules, dict[str, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rules, shapes = case
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("g")
    graph = stored(folder, {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()})
    with pytest.raises(RulesError):
        rules.reversed()
    made = rules.apply(graph).graph
    back = rules.reversed(on=graph, approximate=True)
    for undo in (back, Rules.parse(back.text())):
        again = undo.apply(made).graph
        assert set(again) == set(graph)
        for name in graph:
            assert (again[name].shape, again[name].dtype) == (graph[name].shape, graph[name].dtype)
            assert again[name].tobytes() == graph[name].tobytes(), name


def test_sizes_that_differ_make_a_rule_for_each(tmp_path: Path) -> None:
    rules = Rules.of([{"from": ["l.{i}.a", "l.{i}.b"], "to": "l.{i}", "concat": {"dim": 0}}])
    sizes = {"l.0.a": 1, "l.0.b": 2, "l.1.a": 1, "l.1.b": 2}
    graph = stored(tmp_path, {name: np.zeros(size, "f4") for name, size in sizes.items()})
    assert len(rules.reversed(on=graph)) == 1
    sizes["l.1.b"] = 3
    graph = stored(tmp_path, {name: np.zeros(size, "f4") for name, size in sizes.items()})
    assert [rule.data() for rule in rules.reversed(on=graph).parsed.rules] == [
        {"from": f"l.{i}", "to": [f"l.{i}.a", f"l.{i}.b"], "split": {"dim": "0", "sizes": ["1", size]}}
        for i, size in ((0, "2"), (1, "3"))
    ]
    with pytest.raises(RulesError) as caught:
        rules.reversed(on=names("l.0.a"))
    assert {finding.code for finding in caught.value.findings} == {"rule-incomplete"}


def test_a_join_that_changes_its_parts_differently_stays_open(tmp_path: Path) -> None:
    rules = Rules.of([
        {"from": {"name": "e.{e}", "ops": [{"reshape": [-1]}]}, "to": "e", "concat": {"over": "e", "dim": 0}}
    ])  # fmt: skip
    same = stored(tmp_path, {"e.0": np.zeros((2, 3), "f4"), "e.1": np.zeros((2, 3), "f4")})
    assert rules.reversed(on=same).apply(rules.apply(same).graph).graph["e.1"].shape == (2, 3)
    other = stored(tmp_path, {"e.0": np.zeros((2, 3), "f4"), "e.1": np.zeros((3, 2), "f4")})
    with pytest.raises(RulesError):
        rules.reversed(on=other)


VARIANTS = """
- {from: w, to: x, when: "dim(w, 0) == 4", ops: [transpose]}
- {from: w, to: x, when: "dim(w, 0) != 4"}
"""
SAME_NAME = """
- {from: w, to: x, when: n > 1}
- {from: w, to: y, when: n <= 1}
- {from: "l.{i}", to: "m.{i}", when: "present(w)"}
"""


@pytest.mark.parametrize(
    "text",
    [
        VARIANTS,
        SAME_NAME,
        "- {from: w, to: x, ops: [{pad: {dim: 0, after: dim(0)}}]}",
        "- {from: w, to: x, ops: [transpose, {unflatten: {dim: 0, sizes: [dim(1), -1]}}]}",
        "- {from: w, to: [x, y], split: {dim: 0, sizes: [dim(1), -1]}}",
    ],
)
def test_a_question_with_several_answers_in_the_result_is_not_asked(text: str) -> None:
    """Which of two rules was applied, or what a size was before an operation changed it, the result does not tell."""
    rules = Rules.parse(f"ckptkit-rules: 1\nlet: {{n: 'count(l.{{i}})'}}\nrules:\n{text}\n")
    assert code_of(rules.reversed) == "rule-lossy"


def test_sizes_that_an_operation_leaves_alone_may_be_asked_for() -> None:
    op = {"heads": {"dim": 0, "view": ["dim(1)", -1], "order": [1, 0]}}
    assert "dim(1)" in Rules.of([{"from": "a", "to": "b", "ops": [op]}]).reversed().text()
