"""Transplants of random moves and folds over weights that invite mistakes: whatever is put must be right."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import Node, Origin, TensorGraph
from ckptkit.match.transplant import Transplant, transplant
from tests.match.test_finder import tensor

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
SEEDS = 5  # of so many cases each
CASES = 60


def graph(arrays: Arrays, op: str = "") -> TensorGraph:
    nodes = (Node("n", op, "", tuple(arrays), ("y",)),) if op else ()
    return TensorGraph(
        tensors={name: tensor(array) for name, array in arrays.items()},
        origin=Origin("mem", "onnx"),
        nodes=nodes,
    )


def attempt(tuned: Arrays, model: Arrays, base: Arrays) -> Transplant | None:
    """What is put without anybody's leave; None if it is refused."""
    try:
        done = transplant(graph(tuned), graph(model, "MatMul"), graph(base))
    except CkptError:
        return None
    return None if done.losses else done


def shuffled(arrays: Sequence[tuple[str, Array]], order: float) -> dict[str, Array]:
    items = list(arrays)
    random.Random(order).shuffle(items)
    return dict(items)


class Move(NamedTuple):
    """What an exporter does with some of the weights."""

    kind: str
    of: tuple[int, ...]
    amount: float


def moves(shapes: Sequence[tuple[int, ...]], pick: random.Random) -> list[Move]:
    plan = []
    left = list(range(len(shapes)))
    pick.shuffle(left)
    kinds = ("same", "same", "transposed", "joined", "cut", "stacked", "reshaped", "rows", "gates")
    while left:
        first = left.pop()
        kind = pick.choice(kinds)
        more = [k for k in left if shapes[k] == shapes[first]][: pick.randint(1, 2)]
        if kind in ("joined", "stacked") and not more:
            kind = "same"
        others = more if kind in ("joined", "stacked") else []
        left = [k for k in left if k not in others]
        plan.append(Move(kind, (first, *others), pick.random()))
    return plan


def moved(arrays: Sequence[Array], plan: Sequence[Move], named: bool, order: float) -> dict[str, Array]:
    """The initializers that the moves give."""
    out: list[tuple[str, Array]] = []
    for n, (kind, of, amount) in enumerate(plan):
        some = [arrays[k] for k in of]
        a, half, name = some[0], len(some[0]) // 2, f"t{n}"
        if kind == "same":
            out.append((f"p{of[0]}" if named else name, a))
        elif kind == "transposed":
            out.append((name, a.transpose(1, 0, 2) if a.ndim > 2 else a.T))
        elif kind == "joined":
            out.append((name, np.concatenate(some, int(amount * a.ndim))))
        elif kind == "stacked":
            out.append((name, np.stack(some)))
        elif kind == "cut":
            out += [(f"{name}a", a[:half]), (f"{name}b", a[half:])]
        elif kind == "gates":
            out.append((name, np.concatenate([a[half:], a[:half]])))
        elif kind == "reshaped":
            out.append((name, a.reshape((-1, 2) if a.ndim > 1 else (1, -1))))
        else:
            out.append((name, a))
            if a.ndim == 2:
                out.append((f"{name}r", a[[int(amount * len(a)), 0, 1, 1]][None]))
    return shuffled(out, order)


def invite_mistakes(arrays: list[Array], pick: random.Random) -> None:
    """Constants, equal rows and halves, symmetry, NaN; copies of each other, transposed or nearly."""
    for k, a in enumerate(arrays):
        flat, x = a.reshape(-1), pick.random()
        if x < 0.10:
            a[...] = pick.randint(0, 1)
        elif x < 0.14 and a.ndim == 2 and a.shape[0] == a.shape[1]:
            arrays[k] = a + a.T
        elif x < 0.18 and a.ndim == 2:
            a[1] = a[0]
        elif x < 0.22:
            flat[:3] = np.nan
        elif x < 0.25 and a.ndim == 2:
            a[:, 1] = a[:, 0]
        elif x < 0.28:
            flat[: len(flat) // 2] = 0
        elif x < 0.32:
            a[len(a) // 2 :] = a[: len(a) // 2]
    for k in range(1, len(arrays)):
        other = arrays[pick.randrange(k)]
        if arrays[k].shape == other.shape and pick.random() < 0.35:
            arrays[k] = other.copy()
        elif arrays[k].ndim == 2 and arrays[k].shape == other.shape[::-1] and pick.random() < 0.2:
            arrays[k] = other.T.copy()
        elif arrays[k].shape == other.shape and pick.random() < 0.2:
            arrays[k] = other.copy()
            arrays[k].reshape(-1)[pick.randrange(other.size)] += 1


@pytest.mark.parametrize("block", range(SEEDS))
def test_moves(block: int) -> None:
    put = 0
    for seed in range(block * CASES, (block + 1) * CASES):
        pick, values = random.Random(seed), np.random.default_rng(seed)
        d = pick.choice([4, 6, 8])
        kinds = [(d, d), (d, 2 * d), (d,), (2 * d,), (d, d, 3)]
        shapes = [pick.choice(kinds) for _ in range(pick.randint(2, 6))]
        base, tuned = ([values.normal(size=s).astype("f4") for s in shapes] for _ in range(2))
        invite_mistakes(base, pick)
        settings = moves(shapes, pick), pick.random() < 0.25, pick.random()
        states = [{f"p{k}": a for k, a in enumerate(some)} for some in (tuned, base)]
        done = attempt(states[0], moved(base, *settings), states[1])
        if done is None:
            continue
        put += 1
        told = {name for note in done.notes if note.code == "constants-kept" for name in done.constants}
        for name, expected in moved(tuned, *settings).items():
            assert done.graph[name].tobytes() == expected.tobytes() or name in told, (seed, name)
    assert put > CASES // 4


LAYER = ("conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def layer(values: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Array]:
    c = shape[0]
    made = (
        values.normal(size=shape), values.normal(size=c), values.uniform(0.5, 1.5, c),
        values.normal(size=c), values.normal(size=c), values.uniform(0.2, 2, c),
    )  # fmt: skip
    return {name: array.astype("f4") for name, array in zip(LAYER, made, strict=True)}


def untrained(one: dict[str, Array], pick: random.Random) -> None:
    """Values that many layers share, or that hide what was folded."""
    for chance, names, value in (
        (0.15, ("bn.bias",), 0), (0.15, ("bn.running_mean", "conv.bias"), 0),
        (0.10, ("bn.weight", "bn.running_var"), 1), (0.05, ("bn.weight",), 0), (0.05, ("conv.weight",), 1),
    ):  # fmt: skip
        if pick.random() < chance:
            for name in names:
                one[name][...] = value
    if pick.random() < 0.1:
        one["conv.weight"][pick.randint(0, 1)] = pick.choice([0, np.nan])


def resemble(one: dict[str, Array], other: Mapping[str, Array], pick: random.Random) -> None:
    """Layers that are copies of another in part, nearly, or but for a factor that folding takes out."""
    norm = ("bn.weight", "bn.running_var")
    near = np.float32(1 + 2e-7 * pick.randint(1, 20))
    changes: Sequence[Callable[[], Mapping[str, Array]]] = (
        lambda: {"conv.weight": other["conv.weight"]},
        lambda: {name: other[name] for name in LAYER[2:]},
        lambda: dict(other),
        lambda: {"conv.weight": other["conv.weight"] * near},
        lambda: {"bn.weight": other["bn.weight"] * near, "bn.running_var": other["bn.running_var"]},
        lambda: {name: other[name] for name in norm},
        lambda: {name: other[name] for name in ("conv.weight", *norm)},
    )
    chosen = pick.randrange(2 * len(changes))
    if chosen < len(changes):
        one.update({name: np.array(array, "f4") for name, array in changes[chosen]().items()})
    elif chosen == len(changes):
        factor = np.float32(pick.choice([2, -1]))
        one["conv.weight"], one["bn.weight"] = other["conv.weight"] * factor, other["bn.weight"] / factor
        one["bn.running_var"] = other["bn.running_var"].copy()


class Export(NamedTuple):
    """How the layers come into the graph."""

    folded: tuple[bool, ...]
    transposed: tuple[bool, ...]
    bias: bool
    eps: float
    precise: bool
    named: bool
    order: float


def exported(layers: Sequence[Mapping[str, Array]], how: Export) -> dict[str, Array]:
    out: list[tuple[str, Array]] = []
    for k, one in enumerate(layers):
        bias = one["conv.bias"] if how.bias else np.zeros_like(one["conv.bias"])
        some = {name: a for name, a in one.items() if how.bias or name != "conv.bias"}
        if how.folded[k]:
            kind = np.dtype("f8" if how.precise else "f4")
            w, _, scale, shift, mean, var = (one[name].astype(kind) for name in LAYER)
            factor = scale / np.sqrt(var + kind.type(how.eps))
            weight = (w * factor.reshape(-1, *[1] * (w.ndim - 1))).astype("f4")
            some = {
                "conv.weight": weight,
                "conv.weight_bias": ((bias.astype(kind) - mean) * factor + shift).astype("f4"),
            }
        if how.transposed[k]:
            some["conv.weight"] = some["conv.weight"].T
        for name, array in some.items():
            kept = how.named and not (how.transposed[k] and name == "conv.weight")
            out.append((f"l{k}.{name}" if kept else f"t{len(out)}", array))
    return shuffled(out, how.order)


@pytest.mark.parametrize("block", range(SEEDS))
@pytest.mark.filterwarnings("ignore:invalid value")
def test_folds(block: int) -> None:
    put = 0
    for seed in range(block * CASES, (block + 1) * CASES):
        pick, values = random.Random(seed), np.random.default_rng(seed)
        count, channels, convolution = pick.randint(1, 4), pick.choice([4, 8]), pick.random() < 0.6
        shape = (channels, pick.choice([channels, 4, 6]), *((3, 3) if convolution else ()))
        base, tuned = ([layer(values, shape) for _ in range(count)] for _ in range(2))
        for k, one in enumerate(base):
            untrained(one, pick)
            if k:
                resemble(one, base[pick.randrange(k)], pick)
        how = Export(
            tuple(pick.random() < 0.8 for _ in base),
            tuple(not convolution and pick.random() < 0.5 for _ in base),
            pick.random() < 0.5, pick.choice([1e-5, 1e-5, 1e-3]), pick.random() < 0.2, pick.random() < 0.3,
            pick.random(),
        )  # fmt: skip
        states = [
            {
                f"l{k}.{n}": a
                for k, one in enumerate(some)
                for n, a in one.items()
                if how.bias or n != LAYER[1]
            }
            for some in (tuned, base)
        ]
        done = attempt(states[0], exported(base, how), states[1])
        if done is None:
            continue
        put += 1
        for name, expected in exported(tuned, how).items():
            assert np.allclose(done.graph[name].numpy(), expected, 1e-4, 1e-5, equal_nan=True), (seed, name)
    assert put > CASES // 8
