"""strip: and add: rename exactly the names they say, and refuse what would collide or do nothing."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.rules.ruleset import Rules


def graph(*names: str, **metadata: str) -> TensorGraph:
    tensors = {name: Tensor(DTYPES["uint8"], (0,)) for name in names}
    return TensorGraph(tensors, Origin(str(Path("x")), "safetensors"), metadata=metadata)


def test_strip_takes_the_prefix_off_and_keeps_other_names_and_order() -> None:
    before = graph("module.a", "n_averaged", "module.b.c")
    after = Rules.load("strip:module.").apply(before)
    assert list(after.graph) == ["a", "n_averaged", "b.c"]
    assert {name: step.sources for name, step in after.trace.items()} == {
        "a": ("module.a",),
        "n_averaged": ("n_averaged",),
        "b.c": ("module.b.c",),
    }
    assert after.graph["a"] is before["module.a"]
    assert after.graph.renamed == {"a": "module.a", "b.c": "module.b.c"}


@given(st.lists(st.text(min_size=1, max_size=5), unique=True, min_size=1), st.text(min_size=1, max_size=3))
def test_add_then_strip_is_the_identity(names: list[str], prefix: str) -> None:
    added = Rules.load(f"add:{prefix}").apply(graph(*names)).graph
    back = Rules.load(f"strip:{prefix}").apply(added).graph
    assert list(back) == names


@pytest.mark.parametrize(
    ("rule", "names", "code"),
    [
        ("strip:nope.", ("a", "b"), "rule-unmatched"),
        ("strip:m.", ("m.a", "a"), "name-collision"),
        ("strip:m.", ("m.", "a"), "rule-unmatched"),  # nothing would be left of the name
        ("strip:", ("a",), "rule-invalid"),
        ("rename:a", ("a",), "not-found"),
        ("strip", ("a",), "not-found"),
    ],
)
def test_refusals(rule: str, names: tuple[str, ...], code: str) -> None:
    with pytest.raises(CkptError) as caught:
        Rules.load(rule).apply(graph(*names))
    assert caught.value.code == code


def test_module_versions_move_with_the_names() -> None:
    versions = json.dumps({"": {"version": 1}, "module": {"version": 1}, "module.bn": {"version": 2}})
    after = Rules.load("strip:module.").apply(graph("module.bn.weight", _metadata=versions)).graph
    assert json.loads(after.metadata["_metadata"]) == {"": {"version": 1}, "bn": {"version": 2}}
    again = Rules.load("add:net.").apply(after).graph
    assert json.loads(again.metadata["_metadata"]) == {"net": {"version": 1}, "net.bn": {"version": 2}}


def test_metadata_of_that_name_that_is_something_else_is_left_alone() -> None:
    after = Rules.load("strip:m.").apply(graph("m.a", _metadata="no json")).graph
    assert after.metadata == {"_metadata": "no json"}
