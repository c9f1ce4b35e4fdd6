"""Folding names: nothing is lost, nothing is invented, and it stays quick."""

import random
import re
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.names import DEPTH, Branch, braces, fold, natural, segments, unfold

PIECE = st.sampled_from(
    ["layers", "0", "1", "2", "3", "10", "07", "conv1", "bn_2_x", "q_proj", "", "a/b", "w"]
)
NAME = st.lists(PIECE, min_size=0, max_size=6).map(".".join) | st.text(max_size=8)


def labels(tree: tuple[Branch, ...]) -> list[str]:
    """Each leaf's label with all that stands above it."""
    found = []
    for branch in tree:
        below = labels(branch.children)
        found += [branch.label + label for label in below] if below else [branch.label]
    return found


@given(st.dictionaries(NAME, st.integers(0, 2)))
def test_unfolding_gives_the_names_back(names: dict[str, int]) -> None:
    tree = fold(names.items())
    assert sorted(unfold(tree)) == sorted(names)
    assert sum(branch.names for branch in tree) == len(names)


@given(st.dictionaries(NAME, st.integers(0, 2)))
def test_what_is_folded_together_has_one_signature(names: dict[str, int]) -> None:
    def check(tree: tuple[Branch, ...], above: str) -> None:
        for branch in tree:
            for path in branch.paths:
                if branch.children:
                    check(branch.children, above + path)
                else:
                    assert names[above + path] == branch.signature

    check(fold(names.items()), "")


@given(NAME)
def test_segments_join_to_the_name(name: str) -> None:
    assert "".join(segments(name)) == name


def test_repeated_layers_are_one_branch() -> None:
    names = {"embed.weight": "big"}
    for layer in sorted(range(32), key=str):  # as a file sorted by name has them: 0, 1, 10, 11, …
        names |= {f"model.layers.{layer}.self_attn.{p}_proj.weight": "square" for p in "qo"}
        names |= {f"model.layers.{layer}.self_attn.{p}_proj.weight": "narrow" for p in "kv"}
        names[f"model.layers.{layer}.mlp.weight"] = "wide"
    assert labels(fold(names.items())) == [
        "embed.weight",
        "model.layers.{0..31}.self_attn.{q,o}_proj.weight",
        "model.layers.{0..31}.self_attn.{k,v}_proj.weight",
        "model.layers.{0..31}.mlp.weight",
    ]


def test_gaps_and_exceptions_are_shown_as_they_are() -> None:
    names = {f"h.{layer}.w": "a" for layer in (0, 1, 2, 4, 5, 6, 9)}
    names["h.3.w"] = "b"
    assert labels(fold(names.items())) == ["h.{0..2,4..6,9}.w", "h.3.w"]


def test_a_layer_with_one_name_more_stands_alone() -> None:
    names = {f"h.{layer}.{part}": "a" for layer in range(4) for part in ("w", "b")} | {"h.2.extra": "a"}
    assert labels(fold(names.items())) == ["h.{0,1,3}.{w,b}", "h.2.{w,b,extra}"]


def test_the_number_may_stand_anywhere() -> None:
    names = {f"block_{n}_conv_0": "a" for n in range(5)}
    assert labels(fold(names.items())) == ["block_{0..4}_conv_0"]


def test_a_name_that_others_continue_is_kept() -> None:
    for names in ({"a": 1, "a.b": 2, "a.c.d": 3}, {"a.b": 2, "a.c.d": 3, "a": 1}):
        assert sorted(unfold(fold(names.items()))) == sorted(names)


GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota")


def test_many_siblings_of_one_look_are_not_one_line() -> None:
    names = {f"{word}.weight": "a" for word in GREEK}
    assert labels(fold(names.items())) == list(names)
    scattered = {f"x{n}": "a" for n in range(0, 1000, 3)}
    assert max(map(len, labels(fold(scattered.items())))) < 80


@pytest.mark.parametrize(
    ("alternatives", "label"),
    [
        ([".0", ".1", ".2"], ".{0..2}"),
        ([".10", ".11"], ".{10,11}"),
        ([".08", ".09", ".10"], ".{08..10}"),
        ([".q_proj", ".o_proj"], ".{q,o}_proj"),
        ([".running_mean", ".running_var"], ".running_{mean,var}"),
        ([".gate", ".rate"], ".{gate,rate}"),
        ([".w1", ".w3"], ".w{1,3}"),
        (["only"], "only"),
    ],
)
def test_braces(alternatives: list[str], label: str) -> None:
    assert braces(alternatives) == label


@given(
    st.lists(st.from_regex(r"\A[a-c_.]{0,3}[0-9]{1,3}[a-c_.]{0,3}\Z"), min_size=1, max_size=9, unique=True)
)
def test_braces_expand_as_a_shell_would(alternatives: list[str]) -> None:
    label = braces(sorted(alternatives, key=natural))
    if len(alternatives) == 1:
        assert label == alternatives[0]
        return
    inner = re.fullmatch(r"([^{]*)\{([^}]*)\}(.*)", label)
    assert inner
    texts = []
    for item in inner[2].split(","):
        run = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", item)
        bounds = range(int(run[1]), int(run[2]) + 1) if run else ()
        texts += [str(n).zfill(len(run[1])) for n in bounds] if run else [item]
    assert sorted(inner[1] + text + inner[3] for text in texts) == sorted(alternatives)


def test_natural_order_counts() -> None:
    names = ["l.10.w", "l.9.w", "l.1.w", "l.w", "9" * 5000, ""]
    assert sorted(names, key=natural) == ["", "9" * 5000, "l.1.w", "l.9.w", "l.10.w", "l.w"]


def test_depth_is_bounded() -> None:
    names = {"." * 10_000 + "x": 1, "a." * 10_000: 1, "/" * 50_000: 2}
    names |= {"a." * n: n for n in range(1, 500)}
    tree = fold(names.items())
    assert sorted(unfold(tree)) == sorted(names)

    def depth(branches: tuple[Branch, ...]) -> int:
        return 1 + max(map(depth, (b.children for b in branches)), default=0)

    assert depth(tree) <= DEPTH + 2


def test_two_hundred_thousand_names_fold_in_about_a_second() -> None:
    layers, experts, parts = range(100), range(500), ("w1", "w2", "w3", "b")
    names = [(f"model.layers.{a}.experts.{b}.{c}", c == "w2") for a, b, c in product(layers, experts, parts)]
    random.Random(0).shuffle(names)
    started = time.process_time()
    tree = fold(names)
    assert time.process_time() - started < 5  # well under one on an idle machine
    assert sum(branch.names for branch in tree) == len(names)
    assert len(labels(tree)) <= 4
