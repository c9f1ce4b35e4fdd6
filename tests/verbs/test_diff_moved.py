"""diff: each tensor of either side is told once; what is lost, copied or new is never hidden by a rename."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit as ck

Arrays = dict[str, Any]
Compare = Callable[[Arrays, Arrays], ck.Diff]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    def run(a: Arrays, b: Arrays) -> ck.Diff:
        for name, arrays in (("a", a), ("b", b)):
            save_file(
                {n: np.ascontiguousarray(x) for n, x in arrays.items()}, tmp_path / f"{name}.safetensors"
            )
        return ck.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")

    return run


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape or (8, 8)).astype("f4")


def told(found: ck.Diff) -> tuple[tuple[str, ...], tuple[str, ...], list[tuple[str, ...]], list[str]]:
    moves = [(*move.sources, move.target) for move in found.renamed]
    return found.added, found.removed, moves, sorted(found.changed)


W, ZERO = normal(99), np.zeros(8, "f4")


def test_a_new_bias_of_zeros_is_new(compare: Compare) -> None:
    found = compare({"x.bias": ZERO, "w": W}, {"x.bias": ZERO, "w": W, "head.bias": ZERO})
    assert told(found) == (("head.bias",), (), [], [])
    assert [e.how for e in found.entries if e.status == "added"] == [""]
    back = compare({"x.bias": ZERO, "w": W, "head.bias": ZERO}, {"x.bias": ZERO, "w": W})
    assert told(back) == ((), ("head.bias",), [], [])


def test_a_new_layer_as_it_is_initialised_is_new(compare: Compare) -> None:
    a = {}
    for i in range(3):
        a |= {f"h.{i}.ln.weight": np.ones(8, "f4"), f"h.{i}.ln.bias": ZERO, f"h.{i}.w": normal(i)}
    b = {**a, "h.3.ln.weight": np.ones(8, "f4"), "h.3.ln.bias": ZERO, "h.3.w": normal(7)}
    assert told(compare(a, b)) == (("h.3.ln.bias", "h.3.ln.weight", "h.3.w"), (), [], [])


def test_a_dropped_name_of_a_tied_tensor_is_removed_and_said_to_be_a_copy(compare: Compare) -> None:
    found = compare({"emb": W, "head": W}, {"emb": W})
    assert told(found) == ((), ("head",), [], [])
    assert [e.how for e in found.entries] == ["", "copy of emb"]
    found = compare({"emb": W}, {"emb": W, "head": W, "turned": W.T})
    assert told(found) == (("head", "turned"), (), [], [])
    assert [e.how for e in found.entries] == ["", "copy of emb", "copy of transpose(emb)"]


def test_a_layer_dropped_and_the_rest_renumbered(compare: Compare) -> None:
    layers = [normal(i) for i in range(5)]
    five = {f"h.{i}.w": layers[i] for i in range(5)}
    four = {f"h.{i}.w": layers[k] for i, k in enumerate((0, 1, 3, 4))}
    lost = compare(five, four)
    assert told(lost) == ((), ("h.2.w",), [("h.3.w", "h.2.w"), ("h.4.w", "h.3.w")], [])
    assert (lost.trained, lost.frozen) == ((), ("h.0.w", "h.1.w"))
    new = compare(four, five)
    assert told(new) == (("h.2.w",), (), [("h.2.w", "h.3.w"), ("h.3.w", "h.4.w")], [])


def test_one_of_two_equal_tensors_is_lost(compare: Compare) -> None:
    found = compare({"l0": W, "l1": W}, {"m0": W, "m1": W + 1})
    assert told(found) == (("m1",), ("l1",), [("l0", "m0")], [])
    assert not found.renamed[0].certain


def test_a_tensor_that_became_two_is_renamed_once(compare: Compare) -> None:
    found = compare({"x": W, "k": ZERO}, {"y": W, "z": W, "k": ZERO})
    assert told(found) == (("z",), (), [("x", "y")], [])
    assert not found.renamed[0].certain
    assert found.renamed[0].why


def test_parts_do_not_stand_for_the_whole(compare: Compare) -> None:
    assert told(compare({"w": W}, {"part": W[:3]})) == ((), ("w",), [("w", "part")], [])
    halves = compare({"w": W}, {"one": W[:3], "two": W[3:]})
    assert told(halves) == ((), (), [("w", "one"), ("w", "two")], [])
    assert told(compare({"w": W}, {"w": W, "part": W[:3]})) == (("part",), (), [], [])
    twice = compare({"w": W}, {"one": W[:4], "again": W[:4]})
    assert (len(twice.added), twice.removed, len(twice.renamed)) == (1, ("w",), 1)


def test_a_rounded_original_is_told_once(compare: Compare) -> None:
    found = compare({"x": W.astype("f2")}, {"y": W})
    assert told(found) == ((), (), [("x", "y")], [])
    assert found.renamed[0].backward


def test_frozen_is_the_same_name_and_values(compare: Compare) -> None:
    norms = [normal(i, 32) for i in range(2)]
    swapped = compare(
        {"norm2": norms[0], "norm3": norms[1], "w": W}, {"norm2": norms[1], "norm3": norms[0], "w": W}
    )
    assert told(swapped) == ((), (), [("norm3", "norm2"), ("norm2", "norm3")], [])
    assert (swapped.frozen, swapped.trained) == (("w",), ())
    turned = compare({"square": W, "half": norms[0]}, {"square": W.T, "half": norms[0].astype("f2")})
    assert turned.changed["square"].how == "transpose(square)"
    assert (turned.frozen, turned.trained, turned.renamed) == (("half",), (), ())


def test_counters_and_constants_change_where_they_are(compare: Compare) -> None:
    a = {"n1": np.array([10]), "n2": np.array([20]), "x": normal(1, 32), "y": np.zeros(32, "f4"), "w": W}
    b = {"n1": np.array([20]), "n2": np.array([30]), "x": np.zeros(32, "f4"), "y": normal(2, 32), "w": W}
    found = compare(a, b)
    assert told(found) == ((), (), [], ["n1", "n2", "x", "y"])
    assert (set(found.trained), found.frozen) == ({"n1", "n2", "x", "y"}, ("w",))


def test_values_taken_from_a_tensor_that_was_trained_on_are_a_change(compare: Compare) -> None:
    """Only one direction is proved: both names stay where they are."""
    found = compare({"x": normal(1), "y": normal(2), "w": W}, {"x": normal(2), "y": normal(3), "w": W})
    assert told(found) == ((), (), [], ["x", "y"])
    assert found.changed["x"].how == "y"
    assert (found.trained, found.frozen) == (("y",), ("w",))
