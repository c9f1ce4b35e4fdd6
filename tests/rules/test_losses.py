"""Nothing is lost in silence: what rules leave out is looked at, and what arithmetic destroys is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptkit as ck
from ckptkit.core.errors import CkptError
from tests.rules.support import code_of, codes, names, stored

F4 = np.float32


def rules(text: str) -> ck.Rules:
    return ck.Rules.parse(f"ckptkit-rules: 1\nrules:\n{text}")


def written(folder: Path, arrays: dict[str, Any]) -> Path:
    path = folder / "in.safetensors"
    save_file(arrays, path)
    return path


FILLS = [("0", np.zeros((3, 3), F4)), ("causal", np.tril(np.ones((3, 3), bool))), ("eye", np.eye(3, dtype="f2")),
         ("arange", np.tile(np.arange(3), (3, 1)))]  # fmt: skip


@pytest.mark.parametrize(("value", "array"), FILLS, ids=[value for value, _ in FILLS])
def test_a_fill_is_undone_only_where_it_is_one(value: str, array: Any, tmp_path: Path) -> None:
    back = rules(f"- {{keep: w}}\n- {{fill: b, shape: [3, 3], value: {value}}}\n").reversed()
    assert f"{{drop: b, value: {value}}}" in back.text()
    out = tmp_path / "out.safetensors"
    made = {"w": np.ones(2, F4), "b": array}
    ck.convert(written(tmp_path, made), out, rules=[back])
    assert list(load_file(out)) == ["w"]

    made["b"] = array.copy()
    made["b"][0, 1] = 7
    source = written(tmp_path, made)
    with pytest.raises(CkptError) as refused:
        ck.convert(source, out, rules=[back], overwrite=True)
    assert (refused.value.code, refused.value.where) == ("values-dropped", "b")
    assert refused.value.hint == "--allow-loss values-dropped accepts it"
    with pytest.raises(CkptError, match="1 value"):
        ck.diff(source, out, rules=[back])
    receipt = ck.convert(source, out, rules=[back], overwrite=True, allow_loss=["values-dropped"])
    assert receipt.losses == {"values-dropped": 1}


def test_a_trained_bias_does_not_vanish_on_the_way_to_tensorflow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cell = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "bias_hh_l0": (8,)}
    made = {name: rng.normal(size=shape).astype(F4) for name, shape in cell.items()}
    out = tmp_path / "out.safetensors"
    settings: dict[str, Any] = {
        "rules": ["lstm-tf-torch"],
        "reverse": True,
        "approximate": True,
    }
    source = written(tmp_path, made)
    assert code_of(ck.convert, source, out, **settings) == "values-dropped"
    made["bias_hh_l0"][:] = 0
    ck.convert(written(tmp_path, made), out, **settings)


def test_padding_is_taken_off_only_where_it_is_padding(tmp_path: Path) -> None:
    forward = rules("- {from: e, to: e, ops: [{pad: {dim: 0, before: 1, after: 2, value: 5}}]}\n")
    embed = np.arange(6, dtype=F4).reshape(3, 2)
    padded = forward.apply(stored(tmp_path, {"e": embed})).graph["e"].numpy()
    out = tmp_path / "out.safetensors"
    ck.convert(written(tmp_path, {"e": padded}), out, rules=[forward.reversed()])
    assert np.array_equal(load_file(out)["e"], embed)
    padded = padded.copy()
    padded[0, 0] = padded[5] = 1
    source = written(tmp_path, {"e": padded})
    with pytest.raises(CkptError, match="3 values") as refused:
        ck.convert(source, out, rules=[forward.reversed()], overwrite=True)
    assert refused.value.code == "values-dropped"
    assert codes(forward.reversed(), stored(tmp_path, {"e": embed[:2]})) == ["op-shape"]


@pytest.mark.parametrize("last", ["{drop: b, same_as: c}\n- {keep: c}", "{drop: b}\n- {keep: c}"])
def test_a_copy_of_what_is_dropped_is_compared_all_the_same(last: str, tmp_path: Path) -> None:
    some = rules(f"- {{drop: a, same_as: b}}\n- {last}\n")
    out = tmp_path / "out.safetensors"
    alike = {name: np.ones(3, F4) for name in "abc"}
    ck.convert(written(tmp_path, alike), out, rules=[some])
    other = alike | {"a": np.zeros(3, F4)}
    assert (
        code_of(ck.convert, written(tmp_path, other), out, rules=[some], overwrite=True) == "replicas-differ"
    )


def test_two_tensors_are_not_dropped_as_copies_of_each_other() -> None:
    some = rules("- {drop: a, same_as: b}\n- {drop: b, same_as: a}\n- {keep: c}\n")
    assert codes(some, names("a", "b", "c")) == ["rule-incomplete"]


def test_copies_of_other_shapes_are_a_problem_of_the_rule(tmp_path: Path) -> None:
    some = rules("- {drop: a, same_as: b}\n- {keep: b}\n")
    (found,) = some.check(stored(tmp_path, {"a": np.ones(3, F4), "b": np.ones(2, F4)}))
    assert (found.code, found.where) == ("op-shape", "rules:3")


def test_nested_splits_of_nothing_end(tmp_path: Path) -> None:
    text = '- {from: a, to: "a.{i}.{j}", split: {over: i, dim: 0, parts: 100000}, unstack: {over: j, dim: 1}}'
    assert codes(rules(text), stored(tmp_path, {"a": np.zeros((0, 100_000), F4)})) == ["rule-value"]


def test_what_a_drop_holds_is_one_thing() -> None:
    assert code_of(rules, "- {drop: a, same_as: b, value: 0}\n") == "rule-invalid"
    assert code_of(rules, "- {drop: a, value: none}\n") == "rule-invalid"


@pytest.mark.parametrize(
    ("op", "values", "lost"),
    [("log", [-1, 1, 0, np.nan], 2), ("exp", [100, 1, np.inf], 1), ("{multiply: 4}", [3e38, np.inf, 1], 1),
     ("reciprocal", [0, 2], 1), ("sqrt", [-4, 4, -1], 2), ("{add: 1}", [np.nan, np.inf, -np.inf], 0)],
)  # fmt: skip
def test_values_that_arithmetic_destroys_are_counted(op: str, values: Any, lost: int, tmp_path: Path) -> None:
    source = written(tmp_path, {"a": np.array(values, F4)})
    receipt = ck.convert(
        source,
        tmp_path / "out.safetensors",
        rules=[rules(f"- {{from: a, to: a, ops: [{op}]}}")],
        allow_loss=["not-finite"],
    )
    assert receipt.losses.get("not-finite", 0) == lost


@pytest.mark.parametrize(
    "op", ["{multiply: 0}", "{divide: inf}", "{multiply: nan}", "{add: inf}", "{divide: 0}"]
)
def test_arithmetic_that_makes_all_alike_is_not_undone(op: str) -> None:
    some = rules(f"- {{from: a, to: a, ops: [{op}]}}")
    assert code_of(some.reversed, approximate=True) == "rule-lossy"
