"""Matching and the proof: every name consumed once, every target made once, all problems at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.plan import stored_runs
from ckptkit.core.tensor import Tensor
from ckptkit.rules.outcome import RulesError
from ckptkit.rules.ruleset import Rules
from tests.rules.support import code_of, codes, names, stored


def test_names_are_exchanged_without_a_chain() -> None:
    graph = names("norm2.weight", "norm3.weight")
    rules = [{"from": "norm2.{p:*}", "to": "norm3.{p}"}, {"from": "norm3.{p:*}", "to": "norm2.{p}"}]
    for order in (rules, rules[::-1]):
        after = Rules.of(order).apply(graph).graph
        assert after["norm3.weight"] is graph["norm2.weight"]
        assert after["norm2.weight"] is graph["norm3.weight"]


@pytest.mark.parametrize(
    ("source", "target", "name", "new"),
    [
        ("a.{i}.b", "c.{i+1}", "a.9.b", "c.10"),
        ("a.{i:03}.b", "c.{i}", "a.007.b", "c.7"),
        ("a.{i}", "c.{i:02}", "a.7", "c.07"),
        ("{x:wq|wk}.w", "{x|wq=q,wk=k}.w", "wk.w", "k.w"),
        ("{x:a|a.b}.w", "{x|a,a.b=ab}", "a.b.w", "ab"),
        ("{s:*}.w", "{s}", "ünï cødé/x[0]\\(1).w", "ünï cødé/x[0]\\(1)"),
        ("{rest}.w", "{rest}", "a.b.c.w", "a.b.c"),
        ("a(.*)[^x]$", "b", "a(.*)[^x]$", "b"),
        ("{{i}}.{i}", "{{{i}}}", "{i}.3", "{3}"),
        ("x/y {i}:0", "x.{i}", "x/y 4:0", "x.4"),
        ("{i}.{rest}", "{rest}.{i}", "0.weight", "weight.0"),
        ("{i}", "{i*2}", "21", "42"),
        ("b.{stage[i]}.{block[i]}", "flat.{i}", "b.1.0", "flat.2"),
        ("flat.{i}", "b.{stage[i]}.{block[i]}", "flat.3", "b.1.1"),
        ("b.{i//4}.{i%4}", "f.{i}", "b.2.3", "f.11"),
        ("x.{i%2|0=even,1=odd}.{i//2}", "x.{i}", "x.odd.3", "x.7"),
        ("a.{i}.b.{i}", "c.{i}", "a.3.b.3", "c.3"),
        ("new\nline.{i}", "b\n{i}", "new\nline.1", "b\n1"),
    ],
)
def test_templates(source: str, target: str, name: str, new: str) -> None:
    tables = {"stage": [0, 0, 1, 1], "block": [0, 1, 0, 1]}
    rules = Rules.of([{"from": source, "to": target}], tables=tables)
    assert list(rules.apply(names(name)).graph) == [new]
    assert list(rules.reversed().apply(names(new)).graph) == [name]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a.{i}", "a.01"),
        ("a.{i}", "a.1x"),
        ("a.{i}", "a.-1"),
        ("a.{i}", "a.٣"),
        ("a.{i:02}", "a.7"),
        ("a.{i:02}", "a.007"),
        ("a.{s:*}", "a.b.c"),
        ("a.{x:p|q}", "a.pq"),
        ("a", "a\n"),
        ("a.{i}.b.{i}", "a.1.b.2"),
        ("A", "a"),
        ("a.b", "axb"),
        ("a.{rest:**}", "a."),
        ("a.{i+1}", "a.0"),
    ],
)
def test_what_does_not_match(source: str, name: str) -> None:
    rules = Rules.of([{"from": source, "to": "z.{i}" if "{i" in source else "z"}])
    assert codes(rules, names(name)) == ["rule-leftover", "rule-unmatched"]


def test_every_problem_is_told_at_once_with_its_line() -> None:
    text = """ckptkit-rules: 1
rules:
- {from: "a.{i}", to: same}
- {from: "b.{i}.weigth", to: "x.{i}"}
- {from: c, to: d}
- {from: c, to: e}
"""
    rules = Rules.parse(text, "r.yaml")
    graph = names("a.0", "a.1", "b.0.weight", "b.1.weight", "c")
    with pytest.raises(RulesError) as caught:
        rules.apply(graph)
    found = {(f.code, f.where) for f in caught.value.findings}
    assert {("rule-overlap", "r.yaml:5")} <= found
    graph = names("a.0", "a.1", "b.0.weight", "b.1.weight")
    found = {(f.code, f.where) for f in rules.check(graph)}
    assert found == {
        ("name-collision", "r.yaml:3"),
        ("rule-leftover", "r.yaml"),
        ("rule-unmatched", "r.yaml:4"),
        ("rule-unmatched", "r.yaml:5"),
        ("rule-unmatched", "r.yaml:6"),
    }
    hints = {f.code: f.hint for f in rules.check(graph)}
    assert "b.{i}.weigth" in hints["rule-leftover"]


def test_optional_rules_may_be_silent_and_guards_choose() -> None:
    text = [
        {"from": "a.w", "to": "x.w", "when": "present(b.w)"},
        {"from": "a.w", "to": "y.w", "when": "absent(b.w)"},
        {"from": "b.w", "to": "b", "optional": "true"},
    ]
    assert list(Rules.of(text).apply(names("a.w", "b.w")).graph) == ["x.w", "b"]
    assert list(Rules.of(text).apply(names("a.w")).graph) == ["y.w"]


def test_a_guard_may_ask_about_the_name_itself() -> None:
    rules = Rules.of(
        [
            {"from": "l.{i}.w", "to": "gated.{i}", "when": "present(l.{i}.g)"},
            {"from": "l.{i}.w", "to": "plain.{i}", "when": "not present(l.{i}.g) and i > 0"},
            {"drop": "l.{i}.g"},
        ]
    )
    assert list(rules.apply(names("l.0.w", "l.0.g", "l.1.w")).graph) == ["gated.0", "plain.1"]


def test_already_converted_is_nothing_to_do() -> None:
    rules = Rules.of([{"from": "a", "to": "b"}], done="present(b)")
    graph = names("b")
    done = rules.apply(graph)
    assert done.graph is graph
    assert [finding.code for finding in done.findings] == ["already-converted"]


def test_values_come_from_config_shapes_counts_and_outside(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"heads": None, "text": {"heads": 4}}))
    (tmp_path / "params.json").write_text(json.dumps({"kv": 2, "heads": 8}))
    arrays = {"l.0.w": np.zeros((8, 3), "f4"), "l.1.w": np.zeros((8, 3), "f4")}
    graph = stored(tmp_path, arrays)
    shape = ["config.text.heads", "config.kv", "n", "dim(l.0.w, -1)", "first", "outside"]
    let = {"n": "count(l.{i})", "first": ["config.heads", "config.nothing", 7], "outside": []}
    rules = Rules.of([{"fill": "f", "shape": shape}], let=let, keep_others=True)
    assert rules.apply(graph, outside=5).graph["f"].shape == (4, 2, 2, 3, 7, 5)
    assert codes(rules, graph) == ["rule-value"]
    assert codes(rules, graph, outsid=5) == ["rule-value"]


def test_copies_ties_and_shared_sources() -> None:
    graph = names("a", "b")
    after = Rules.of(
        [
            {"shared": "a"},
            {"from": "a", "to": ["x", "y"]},
            {"from": "a", "to": "z"},
            {"keep": "b"},
            {"tie": "t", "to": "b"},
        ]
    ).apply(graph)
    assert {name: after.graph[name] is graph["a"] for name in after.graph} == {
        "x": True, "y": True, "z": True, "b": False, "t": False
    }  # fmt: skip
    assert after.graph["t"] is graph["b"]
    assert codes(Rules.of([{"shared": "a"}, {"keep": "b"}]), graph) == ["rule-incomplete"]


def test_a_dropped_copy_must_equal_what_it_copies(tmp_path: Path) -> None:
    ones, twos = np.ones(3, "f4"), np.full(3, 2, "f4")
    rules = Rules.of([{"keep": "a"}, {"drop": "b", "same_as": "a"}])
    same = rules.apply(stored(tmp_path, {"a": ones, "b": ones})).graph
    assert np.array_equal(same["a"].numpy(), ones)
    other = rules.apply(stored(tmp_path, {"a": ones, "b": twos})).graph
    assert code_of(other["a"].tobytes) == "replicas-differ"


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (("e.0.w1", "e.0.w3", "e.1.w1", "e.1.w3"), ""),
        (("e.0.w1", "e.0.w3", "e.2.w1", "e.2.w3"), "rule-gap"),
        (("e.1.w1", "e.1.w3"), "rule-gap"),
        (("e.0.w1", "e.0.w3", "e.1.w1"), "rule-incomplete"),
        (("e.0.w1",), "rule-incomplete"),
    ],
)
def test_joined_numbers_run_without_gaps(found: tuple[str, ...], code: str) -> None:
    rules = Rules.of(
        [
            {
                "from": "e.{i}.{x:w1|w3}",
                "to": "e",
                "concat": {"over": "x", "dim": 0},
                "stack": {"over": "i", "dim": 0},
            }
        ]
    )
    assert codes(rules, names(*found, shape=(2, 3))) == ([code] if code else [])


def test_stacked_numbers_ascend_and_texts_keep_their_order(tmp_path: Path) -> None:
    arrays = {
        f"e.{i}.{x}": np.full((1, 2), 10 * i + k, "f4")
        for i in (10, 2, 0, 1, *range(3, 10))
        for k, x in enumerate("ba")
    }
    rules = Rules.of(
        [
            {
                "from": "e.{i}.{x:b|a}",
                "to": "e",
                "concat": {"over": "x", "dim": 1},
                "stack": {"over": "i", "dim": 0},
            }
        ]
    )
    made = rules.apply(stored(tmp_path, arrays)).graph["e"].numpy()
    assert made[:, 0].tolist() == [[10 * i, 10 * i, 10 * i + 1, 10 * i + 1] for i in range(11)]


def test_ranks_are_joined_and_replicas_compared(tmp_path: Path) -> None:
    whole = np.arange(12, dtype="f4").reshape(4, 3)
    arrays = {"0.w": whole[:2], "1.w": whole[2:], "0.n": whole[0], "1.n": whole[0]}
    rules = Rules.of(
        [
            {"from": "{r}.w", "to": "w", "concat": {"over": "r", "dim": 0, "sizes": "equal"}},
            {"from": "{r}.n", "to": "n", "same": {"over": "r"}},
        ]
    )
    after = rules.apply(stored(tmp_path, arrays)).graph
    assert np.array_equal(after["w"].numpy(), whole)
    assert np.array_equal(after["n"].numpy(), whole[0])


def test_layout_along_the_first_dimension_moves_no_bytes(tmp_path: Path) -> None:
    arrays = {
        "qkv": np.arange(24, dtype="f4").reshape(12, 2),
        "a": np.ones((2, 2), "f4"),
        "b": np.ones((2, 2), "f4"),
    }
    graph = stored(tmp_path, arrays)
    rules = Rules.of(
        [
            {
                "from": "qkv",
                "to": ["q", "k", "v"],
                "split": {"dim": 0, "sizes": [6, 3, -1]},
                "ops": [{"reshape": [12, 2]}],
            },
            {"from": ["a", "b"], "to": "c", "concat": {"dim": 0}},
            {"from": "untouched", "to": "u", "optional": "true"},
        ]
    )
    after = rules.apply(graph).graph
    assert [after[name].file is not None for name in "qkv"] == [True] * 3
    assert after["k"].offset == graph["qkv"].offset + 6 * 2 * 4
    runs = stored_runs(after["c"])
    assert runs is not None
    assert [run.offset for run in runs] == [graph["a"].offset, graph["b"].offset]


def test_the_trace_tells_sources_rule_and_operations() -> None:
    rules = Rules.parse(
        'ckptkit-rules: 1\nrules:\n- {from: [a, b], to: c, concat: {dim: 0}}\n- {drop: "d"}\n', "r.yaml"
    )
    after = rules.apply(names("a", "b", "d"))
    assert after.trace["c"] == (("a", "b"), "r.yaml:3", ("concat(dim=0)",))
    assert after.dropped == ("d",)


def test_metadata_objects_and_origin_stay() -> None:
    graph = names("a")
    graph = TensorGraph(graph.tensors, graph.origin, metadata={"k": "v"})
    assert Rules.of([{"from": "a", "to": "b"}]).apply(graph).graph.metadata == {"k": "v"}


def typed(**dtypes: str) -> TensorGraph:
    tensors = {name: Tensor(DTYPES[dtype], (4, 4)) for name, dtype in dtypes.items()}
    return TensorGraph(tensors, Origin("x", "safetensors"))


def test_scales_go_with_their_weights() -> None:
    rules = Rules.of(
        [{"from": "l.{i}.{x:q|k}.weight", "to": "m.{i}.{x}_proj.weight"}, {"drop": "old.weight"}]
    )
    graph = typed(
        **{
            "l.0.q.weight": "float8_e4m3fn", "l.0.q.weight_scale_inv": "float32", "l.0.q.input_scale": "float32",
            "l.0.k.qweight": "int32", "l.0.k.qzeros": "int32", "l.0.k.scales": "float16", "l.0.k.g_idx": "int32",
            "old.weight": "int8", "old.weight_scale": "float32",
        }
    )  # fmt: skip
    after = rules.apply(graph)
    assert list(after.graph) == [
        "m.0.q_proj.weight", "m.0.q_proj.weight_scale_inv", "m.0.q_proj.input_scale",
        "m.0.k_proj.qweight", "m.0.k_proj.qzeros", "m.0.k_proj.scales", "m.0.k_proj.g_idx",
    ]  # fmt: skip
    assert set(after.dropped) == {"old.weight", "old.weight_scale"}


def test_a_scale_does_not_follow_a_weight_that_is_changed() -> None:
    rules = Rules.of([{"from": "a.weight", "to": "b.weight", "ops": ["transpose"]}])
    quantised = {"a.weight": "float8_e4m3fn", "a.weight_scale": "float32"}
    assert codes(rules, typed(**quantised)) == ["rule-quantized"]
    both = Rules.of(
        [*(rule.data() for rule in rules.parsed.rules), {"from": "a.weight_scale", "to": "b.weight_scale"}]
    )
    assert codes(both, typed(**quantised)) == []
    plain = {"a.weight": "float32", "a.weight_scale": "float32"}
    assert codes(rules, typed(**plain)) == ["rule-leftover"]


def test_grouped_heads_are_cut_out_of_one_matrix_and_put_back(tmp_path: Path) -> None:
    """Two groups, in each three queries, a key and a value, of width 4: as Falcon and Megatron store them."""
    fused = np.arange(2 * 5 * 4 * 3, dtype="f4").reshape(40, 3)
    rules = Rules.of(
        [
            {
                "from": "h.{i}.qkv",
                "to": [
                    {"name": "l.{i}.q", "ops": [{"flatten": {"dim": 0, "sizes": ["G", "Q", "D"]}}]},
                    {"name": "l.{i}.k", "ops": [{"flatten": {"dim": 0, "sizes": ["G", 1, "D"]}}]},
                    {"name": "l.{i}.v", "ops": [{"flatten": {"dim": 0, "sizes": ["G", 1, "D"]}}]},
                ],
                "ops": [{"unflatten": {"dim": 0, "sizes": ["G", "Q+2", "D"]}}],
                "split": {"dim": 1, "sizes": ["Q", 1, 1]},
            }
        ],
        let={"G": [], "Q": [], "D": []},
    )
    graph = stored(tmp_path, {"h.0.qkv": fused})
    made = rules.apply(graph, G=2, Q=3, D=4).graph
    grouped = fused.reshape(2, 5, 4, 3)
    assert np.array_equal(made["l.0.q"].numpy(), grouped[:, :3].reshape(24, 3))
    assert np.array_equal(made["l.0.k"].numpy(), grouped[:, 3].reshape(8, 3))
    back = rules.reversed().apply(made, G=2, Q=3, D=4).graph["h.0.qkv"]
    assert np.array_equal(back.numpy(), fused)


def test_fills_like_what_was_made(tmp_path: Path) -> None:
    arrays = {"l.0.w": np.ones((4, 3), "f2"), "l.1.w": np.ones((4, 3), "f2"), "head": np.ones((2, 3), "f4")}
    rules = [
        {"from": "l.{i}.w", "to": "m.{i+1}.w"},
        {"keep": "head"},
        {"fill": "m.{i}.b", "like": "m.{i}.w", "shape": ["dim(0)", "i"], "value": "2"},
        {"fill": "{rest:**}.scale", "like": "{rest:**}.w", "dtype": "float32"},
        {"tie": "tail", "to": "head"},
    ]
    for order in (rules, rules[::-1]):
        found = Rules.of(order).apply(stored(tmp_path, arrays))
        made = {name: (str(t.dtype), t.shape, float(t.numpy().flat[0])) for name, t in found.graph.items()}
        assert {name: fact for name, fact in made.items() if name.endswith((".b", ".scale"))} == {
            "m.1.b": ("float16", (4, 1), 2.0), "m.1.scale": ("float32", (4, 3), 0.0),
            "m.2.b": ("float16", (4, 2), 2.0), "m.2.scale": ("float32", (4, 3), 0.0),
        }  # fmt: skip
        assert found.trace["m.1.b"].operations == ("fill(2)",)
        back = Rules.of(order).reversed().apply(found.graph).graph
        assert set(back) == set(arrays)
    graph = names("a")
    chain = [{"keep": "a"}, {"fill": "b", "like": "a"}, {"fill": "c", "like": "b"}]
    for order in (chain, chain[::-1]):
        assert codes(Rules.of(order), graph) == ["rule-unmatched"]
    assert codes(Rules.of([{"keep": "a"}, {"fill": "a", "like": "a"}]), graph) == ["name-collision"]


def test_places_are_counted_over_the_numbers_of_names() -> None:
    rules = Rules.of(
        [
            {"from": "blocks.{s}.{b}.{x:*}", "to": "flat.{place(blocks.{s}.{b})}.{x}"},
            {"from": "blocks.{s}.down", "to": "stages.{s-1}.{2*count(blocks.{s-1}.{b})}"},
        ]
    )
    found = [
        "blocks.10.0.w",
        "blocks.2.1.w",
        "blocks.2.1.b",
        "blocks.2.0.w",
        "blocks.9.0.w",
        "blocks.10.down",
    ]
    assert list(rules.apply(names(*found)).graph) == [
        "flat.3.w", "flat.1.w", "flat.1.b", "flat.0.w", "flat.2.w", "stages.9.2",
    ]  # fmt: skip
    assert code_of(rules.reversed) == "rule-lossy"
    lost = Rules.of([{"from": "a.{i}", "to": "b.{place(q.{i})}"}])
    assert codes(lost, names("a.0")) == ["rule-value"]
    words = Rules.of([{"from": "a.{x:*}", "to": "b.{place(a.{x})}"}])
    assert codes(words, names("a.q")) == ["rule-value"]
    back = Rules.of([{"from": "b.{place(a.{i})}", "to": "a.{i}"}])
    assert codes(back, names("b.0")) == ["rule-invalid"]
    assert code_of(Rules.of, [{"from": "a.{i}", "to": "b.{place(a)}"}]) == "rule-invalid"


def test_parts_keep_what_they_leave(tmp_path: Path) -> None:
    array = np.arange(24, dtype="f4").reshape(6, 4)
    graph = stored(tmp_path, {"a": array})

    def part(**args: Any) -> Rules:
        return Rules.of([{"from": "a", "to": "a", "ops": [{"part": args}]}])

    found = part(dim=-1, start="dim(1)//2", ops=["neg"]).apply(graph).graph["a"].numpy()
    assert np.array_equal(found[:, :2], array[:, :2])
    assert np.array_equal(found[:, 2:], -array[:, 2:])
    assert np.array_equal(part(dim=0, start=2, stop=2, ops=["neg"]).apply(graph).graph["a"].numpy(), array)
    last = part(dim=0, start=-2, ops=["neg"]).apply(graph).graph["a"].numpy()
    assert np.array_equal(last, np.concatenate([array[:4], -array[4:]]))
    for wrong in ({"start": 4, "stop": 2}, {"stop": 7}, {"start": -7}):
        assert codes(part(dim=0, ops=["neg"], **wrong), graph) == ["op-shape"]
    assert codes(part(dim=0, stop=3, ops=["transpose"]), graph) == ["op-shape"]
    assert codes(part(dim=0, stop=3, ops=[{"cast": "float16"}]), graph) == ["op-shape"]


def test_many_blocks_and_long_lists_cost_little() -> None:
    graph = names("x", shape=(50_000, 0))
    order = [*range(25_000, 50_000), *range(25_000)]
    rules = Rules.of([{"from": "x", "to": "y", "ops": [{"blocks": {"dim": 0, "order": order}}]}])
    assert rules.apply(graph).graph["y"].shape == (50_000, 0)


@given(order=st.permutations(range(8)))
def test_the_order_of_rules_is_nothing(order: list[int]) -> None:
    rules: list[dict[str, Any]] = [
        {"from": "norm2.{p:*}", "to": "norm3.{p}"},
        {"from": "norm3.{p:*}", "to": "norm2.{p}"},
        {"from": "l.{i}.{x:q|k}", "to": "l.{n-1-i}.{x|q=k,k=q}"},
        {"from": ["c", "a"], "to": "b", "concat": {"dim": 0}},
        {"from": "b", "to": ["a", "c"], "split": {"dim": 0}},
        {"drop": "gone"},
        {"tie": "tied", "to": "norm2.w"},
        {"fill": "made.{k}", "over": {"k": 2}, "shape": [2]},
    ]
    graph = names(
        "norm2.w", "norm3.w", "l.0.q", "l.0.k", "l.1.q", "l.1.k", "a", "c", "b", "gone", shape=(4, 0)
    )
    straight, mixed = (
        Rules.of([rules[n] for n in way], let={"n": "count(l.{i})"}).apply(graph)
        for way in (range(len(rules)), order)
    )
    assert {name: step.sources for name, step in mixed.trace.items()} == {
        name: step.sources for name, step in straight.trace.items()
    }
    assert set(mixed.dropped) == set(straight.dropped)


def test_ties_speak_of_what_other_rules_make() -> None:
    """Never of each other, as then their order would count."""
    rules = [{"keep": "a"}, {"tie": "b", "to": "a"}, {"tie": "c", "to": "b"}]
    for order in (rules, rules[::-1]):
        assert codes(Rules.of(order), names("a")) == ["rule-unmatched"]
