"""The content finder: whatever was done to a tensor is found and proved, and nothing else is."""

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptkit
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.match.finder import Correspondence, Match, Permute, Source, equal, evaluate, find

Array = np.ndarray[Any, Any]

NAMES = {d.numpy: d for d in DTYPES.values() if d.numpy and d.kind != "quantized" and d.kind != "bits"}


def tensor(array: Array) -> Tensor:
    data = np.ascontiguousarray(array)
    strides = [s // data.itemsize for s in data.strides]
    return view(MemoryStorage(data.tobytes(), object()), NAMES[data.dtype.name], data.shape, strides, 0)


def tensors(**arrays: Array) -> dict[str, Tensor]:
    return {name: tensor(array) for name, array in arrays.items()}


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def proved(result: Correspondence, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Match]:
    """The matches by target, each computed again by plain numpy and compared byte for byte."""
    for match, (targets, sources) in [
        *((match, (b, a)) for match in result.pairs),
        *((match, (a, b)) for match in result.backward),
    ]:
        values, wanted = evaluate(match.expression, sources), targets[match.target]
        assert (values.shape, values.dtype) == (wanted.shape, wanted.numpy().dtype), match
        assert values.tobytes() == wanted.tobytes(), match
    for names, matched, missing in (
        (b, result.pairs, result.unmatched_b),
        (a, result.backward, result.unmatched_a),
    ):
        assert not {match.target for match in matched} & set(missing)
        assert set(missing) <= set(names)
    return {match.target: match for match in result.pairs}


def explained(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Match]:
    return proved(find(a, b), a, b)


def gist(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {name: (match.how, match.sources) for name, match in explained(a, b).items()}


def test_equal_names() -> None:
    a = tensors(x=normal(4, 5), y=normal(7))
    assert gist(a, a) == {"x": ("same", ("x",)), "y": ("same", ("y",))}
    result = find(a, a, same={"x", "y"})
    assert [match.how for match in result.pairs] == ["same", "same"]


def test_two_tensors_that_changed_places() -> None:
    x, y = normal(16, seed=1), normal(16, seed=2)
    assert gist(tensors(norm2=x, norm3=y), tensors(norm2=y, norm3=x)) == {
        "norm2": ("renamed", ("norm3",)),
        "norm3": ("renamed", ("norm2",)),
    }


def test_a_changed_tensor_is_left_alone() -> None:
    x, y = normal(8, 8, seed=1), normal(8, 8, seed=2)
    result = find(tensors(w=x, v=y), tensors(w=x + 1, v=y))
    assert [match.target for match in result.pairs] == ["v"]
    assert (result.unmatched_a, result.unmatched_b) == (("w",), ("w",))


@pytest.mark.parametrize(
    ("shape", "change", "how"),
    [
        ((6, 4), lambda x: x, "renamed"),
        ((6, 4), lambda x: x.T, "transposed"),
        ((1, 9), lambda x: x.T, "transposed"),
        ((6, 6), lambda x: x.T, "transposed"),
        ((2, 3, 4, 5), lambda x: x.transpose(2, 3, 1, 0), "permuted"),
        ((3, 3, 3, 3), lambda x: x.transpose(3, 0, 2, 1), "permuted"),
        ((2, 1, 4), lambda x: x.transpose(2, 1, 0), "permuted"),
        ((6, 4), lambda x: x.reshape(2, 3, 4), "reshaped"),
        ((5, 7, 1, 1), lambda x: x.reshape(5, 7), "reshaped"),
        ((5, 7, 1, 1), lambda x: x.reshape(5, 7).T, "transposed"),
        ((12, 4), lambda x: x.reshape(3, 4, 4).transpose(1, 0, 2).reshape(12, 4), "permuted"),
        ((4, 12), lambda x: x.reshape(4, 3, 2, 2).transpose(0, 1, 3, 2).reshape(4, 12), "permuted"),
        ((8, 4), lambda x: x[::-1], "permuted"),
        ((8, 3, 3), lambda x: x.reshape(8, 9).T, "permuted"),
        ((20, 4), lambda x: x[3:9], "slice"),
        ((20, 6), lambda x: x[:, 2:5], "slice"),
        ((20, 6), lambda x: x[:, 2:5].T, "slice"),
        ((20, 6), lambda x: x[::5], "slice"),
        ((24, 6), lambda x: x.reshape(2, 3, 4, 6)[:, 1].reshape(8, 6), "slice"),
        ((3, 8, 5), lambda x: x[1], "slice"),
        ((8, 3, 5), lambda x: x[:, 2].T, "slice"),
        ((3, 8, 5), lambda x: x[1, 2:6], "slice"),
        ((40,), lambda x: x[8:16], "slice"),
        ((30, 2), lambda x: x[[3, 9, 8, 1, 29, 17]], "slice"),
    ],
)
def test_one_source(shape: tuple[int, ...], change: Any, how: str) -> None:
    x, other = normal(*shape), normal(*shape, seed=5)
    assert gist(tensors(x=x, other=other), tensors(y=change(x))) == {"y": (how, ("x",))}


@pytest.mark.parametrize("dim", [0, 1])
def test_projections_of_unequal_size_joined(dim: int) -> None:
    q, k, v = (np.moveaxis(normal(n, 6, seed=n), 0, dim) for n in (16, 4, 5))
    fused = np.concatenate([q, k, v], dim)
    assert gist(tensors(q=q, k=k, v=v), tensors(qkv=fused)) == {"qkv": ("concat", ("q", "k", "v"))}
    assert gist(tensors(qkv=fused), tensors(q=q, k=k, v=v)) == dict.fromkeys("qkv", ("slice", ("qkv",)))


def test_joined_and_rounded() -> None:
    q, k = normal(8, 6, seed=1), normal(4, 6, seed=2)
    parts, fused = tensors(q=q, k=k), tensors(qk=np.concatenate([q, k]).astype("f2"))
    assert gist(parts, fused) == {"qk": ("concat", ("q", "k"))}
    result = find(fused, parts)
    assert not result.pairs
    assert [(m.target, m.sources) for m in result.backward] == [("qk", ("q", "k"))]
    halves = tensors(q=q.astype("f2"), k=k.astype("f2"))
    assert gist(tensors(qk=np.concatenate([q, k])), halves) == dict.fromkeys("qk", ("slice", ("qk",)))
    wide = tensors(qk=np.concatenate([q, k]).astype("f2").astype("f4"))
    assert gist(halves, wide) == {"qk": ("concat", ("q", "k"))}


def test_equal_parts_joined() -> None:
    q, k = normal(8, 6, seed=1), normal(4, 6, seed=2)
    match = explained(tensors(q=q, v=k, k=k), tensors(qkv=np.concatenate([q, k, k])))["qkv"]
    assert sorted(match.sources) == ["k", "q", "v"]
    assert not match.certain


def test_joined_after_transposing() -> None:
    q, k = normal(8, 6, seed=1), normal(4, 6, seed=2)
    assert gist(tensors(q=q, k=k), tensors(qk=np.concatenate([q.T, k.T], 1))) == {
        "qk": ("concat", ("q", "k"))
    }


def test_heads_interleaved() -> None:
    q, k, v = (normal(8, 6, seed=s) for s in (1, 2, 3))
    fused = np.stack([x.reshape(2, 4, 6) for x in (q, k, v)], 1).reshape(24, 6)
    assert gist(tensors(q=q, k=k, v=v), tensors(qkv=fused)) == {"qkv": ("concat", ("q", "k", "v"))}
    assert gist(tensors(qkv=fused), tensors(q=q, k=k, v=v)) == dict.fromkeys("qkv", ("slice", ("qkv",)))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_experts_stacked(dim: int, transposed: bool) -> None:
    experts = {f"experts.{k}.w": normal(5, 7, seed=k) for k in range(4)}
    stacked = np.stack([x.T if transposed else x for x in experts.values()], dim)
    a = {name: tensor(x) for name, x in experts.items()}
    assert gist(a, tensors(w=stacked)) == {"w": ("stack", tuple(experts))}
    back = gist(tensors(w=stacked), a)
    assert back == dict.fromkeys(experts, ("slice", ("w",)))


def test_stack_of_joined_experts() -> None:
    experts = {
        f"{k}.{w}": normal(5, 7, seed=10 * k + j) for k in range(3) for j, w in enumerate(("gate", "up"))
    }
    pairs = [np.concatenate([experts[f"{k}.gate"], experts[f"{k}.up"]]) for k in range(3)]
    a = {name: tensor(x) for name, x in experts.items()}
    assert gist(a, tensors(gate_up=np.stack(pairs))) == {"gate_up": ("stack", tuple(experts))}


def test_incomplete_whole_explains_its_part() -> None:
    small, large = normal(10, 6), np.concatenate([normal(10, 6), normal(3, 6, seed=9)])
    result = find(tensors(table=small), tensors(table=large))
    assert not result.pairs
    assert [(m.target, m.how, m.sources) for m in result.backward] == [("table", "slice", ("table",))]
    assert not result.unmatched_a
    assert not result.unmatched_b


@pytest.mark.parametrize("wide", ["float64", "float32"])
@pytest.mark.parametrize("narrow", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_casts(wide: str, narrow: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    from ckptkit.ops.cast import cast

    x = torch.from_numpy(normal(6, 5).astype(wide))
    for shaped, how in ((x, "cast"), (x.T.contiguous(), "transposed")):
        rounded = shaped.to(getattr(torch, narrow))
        data = rounded.view(torch.uint8).numpy().tobytes()
        y = view(MemoryStorage(data, None), DTYPES[narrow], rounded.shape, rounded.stride(), 0)
        a, b = {"x": tensor(x.numpy())}, {"y": y}
        assert gist(a, b) == {"y": (how, ("x",))}
        if narrow not in ("float8_e4m3fn", "float8_e5m2"):
            widened = {"z": cast(y, DTYPES[wide])}
            assert gist(b, widened) == {"z": ("cast", ("y",))}
        result = find(b, a)  # what was rounded cannot make the original, but comes from it
        assert not result.pairs
        assert [m.sources for m in result.backward] == [("x",)]


def test_integers_in_another_width() -> None:
    x = np.arange(-50, 50)
    assert gist(tensors(x=x), tensors(y=x.astype("int8"))) == {"y": ("cast", ("x",))}
    assert gist(tensors(x=x.astype("int16")), tensors(y=x)) == {"y": ("cast", ("x",))}
    assert not find(tensors(x=x + 256), tensors(y=x.astype("int8"))).pairs


def test_copies_and_tied_tensors() -> None:
    x = normal(8, 4)
    matches = explained(tensors(x=x), tensors(y=x, z=x))
    assert {name: (m.sources, m.certain) for name, m in matches.items()} == {
        "y": (("x",), True),
        "z": (("x",), True),
    }
    result = find(tensors(x=x, x2=x), tensors(y=x))
    assert len(result.pairs) == 1
    assert not result.pairs[0].certain
    assert [match.target for match in result.backward] == ["x2"]


def test_a_dropped_copy_of_a_tensor_that_kept_its_name() -> None:
    x = normal(8, 4)
    result = find(tensors(embed=x, head=x), tensors(embed=x))
    assert [(m.target, m.sources) for m in result.backward] == [("head", ("embed",))]
    result = find(tensors(embed=x), tensors(embed=x, head=x))
    assert {m.target: (m.how, m.sources) for m in result.pairs} == {
        "embed": ("same", ("embed",)),
        "head": ("renamed", ("embed",)),
    }


def test_equal_tensors_go_with_the_modules_around_them() -> None:
    a, b, answer = {}, {}, {}
    for k in range(12):
        weight = tensor(normal(4, 4, seed=k))
        # Listed in another order, so that position misleads.
        a[f"blocks.{k}.fc.weight"], b[f"h.{(k * 5) % 12}.mlp.kernel"] = weight, weight
        for x, y in (("fc.bias", "mlp.bias"), ("norm.bias", "ln.beta"), ("norm.weight", "ln.gamma")):
            value = np.ones(4, "f4") if x == "norm.weight" else np.zeros(4, "f4")
            a[f"blocks.{k}.{x}"], b[f"h.{(k * 5) % 12}.{y}"] = tensor(value), tensor(value)
            answer[f"h.{(k * 5) % 12}.{y}"] = f"blocks.{k}.{x}"
    matches = explained(a, b)
    sources = {name: matches[name].sources[0] for name in answer}
    assert {name: s.split(".")[1] for name, s in sources.items()} == {
        n: s.split(".")[1] for n, s in answer.items()
    }
    assert sources == answer
    assert not any(matches[name].certain for name in answer)
    assert {matches[name].why for name in answer} == {"several tensors hold the same values; chosen by name"}
    assert sorted(sources.values()) == sorted(answer.values())


def test_many_equal_tensors_are_each_used_once() -> None:
    zeros = tensor(np.zeros(8, "f4"))
    a = {f"layers.{k}.bias": zeros for k in range(300)}
    b = {f"h.{k}.b": zeros for k in range(300)}
    assert [m.sources[0] for m in find(a, b).pairs] == list(a)


def test_shapes_and_axes_of_a_graph_are_constants() -> None:
    graph = tensors(axes=np.array([0, 2]), shape=np.array([1, -1, 64]), weight=normal(4, 4, seed=7))
    result = find(tensors(w=normal(3, 3)), graph)
    assert result.constants_b == ("axes", "shape")
    assert (result.unmatched_a, result.unmatched_b) == (("w",), ("weight",))


def test_zeros_are_no_slice_of_other_zeros() -> None:
    assert not find(tensors(x=np.zeros(64, "f4")), tensors(y=np.zeros(16, "f4"))).pairs


def test_nothing_but_the_same_sums() -> None:
    """Elements in an order that no layout gives: the sums agree, the bytes do not."""
    x = normal(6, 8)
    y = np.random.default_rng(3).permutation(x.reshape(-1)).reshape(6, 8)
    result = find(tensors(x=x), tensors(y=y))
    assert not result.pairs
    assert not result.backward


def test_bits_count() -> None:
    x = normal(8)
    x[3] = 0.0
    y = x.copy()
    y[3] = -0.0
    assert not find(tensors(x=x), tensors(y=y)).pairs
    x[3], y[3] = np.nan, -np.nan
    assert not find(tensors(x=x), tensors(y=y)).pairs


def test_empty_tensors_and_scalars() -> None:
    a = tensors(x=np.empty((0, 4), "f4"), s=np.array(2.5, "f4"))
    assert gist(a, tensors(y=np.empty((0, 4), "f4"), t=np.array(2.5, "f4"))) == {
        "y": ("renamed", ("x",)),
        "t": ("renamed", ("s",)),
    }
    assert find({}, {}) == Correspondence((), (), (), (), (), ())


@st.composite
def _rearranged(draw: st.DrawFn) -> tuple[dict[str, Array], dict[str, Array], dict[str, tuple[str, ...]]]:
    """Random sources, random targets made of them, and which were used."""
    dtype = draw(st.sampled_from(["float32", "float64"]))
    seed = draw(st.integers(0, 10_000))
    a: dict[str, Array] = {}
    b: dict[str, Array] = {}
    used: dict[str, tuple[str, ...]] = {}

    def fresh(*shape: int) -> str:
        name = f"a{len(a)}"
        values = np.random.default_rng([seed, len(a)]).standard_normal(shape) * 1000
        a[name] = values.astype(dtype)
        return name

    for k in range(draw(st.integers(1, 4))):
        rank = draw(st.integers(1, 4))
        shape = [draw(st.integers(2, 6)) for _ in range(rank)]
        shape[draw(st.integers(0, rank - 1))] += 17
        kind = draw(st.sampled_from(["permute", "reshape", "slice", "concat", "stack"]))
        dim = draw(st.integers(0, rank - 1))
        names = (fresh(*shape),)
        order = draw(st.permutations(range(rank)))
        if kind == "permute":
            value = a[names[0]].transpose(order)
        elif kind == "reshape":
            value = a[names[0]].reshape(-1, shape[0])
        elif kind == "slice":
            start = draw(st.integers(0, shape[dim] - 2))
            value = np.take(a[names[0]], range(start, draw(st.integers(start + 2, shape[dim]))), dim)
            value = value.transpose(order)
        else:
            for _ in range(draw(st.integers(1, 3))):
                if kind == "concat":
                    shape[dim] = draw(st.integers(2, 9))
                names += (fresh(*shape),)
            join = np.concatenate if kind == "concat" else np.stack
            value = join([a[name].transpose(order) for name in names], order.index(dim))
        b[f"b{k}"] = value.copy(order="C")
        used[f"b{k}"] = names
    return a, b, used


@given(_rearranged())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_rearrangements(
    case: tuple[dict[str, Array], dict[str, Array], dict[str, tuple[str, ...]]],
) -> None:
    arrays, made, used = case
    a, b = tensors(**arrays), tensors(**made)
    matches = explained(a, b)
    assert {name: tuple(sorted(match.sources)) for name, match in matches.items()} == {
        name: tuple(sorted(names)) for name, names in used.items()
    }


@given(_rearranged(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_flipped_bit_is_never_matched(
    case: tuple[dict[str, Array], dict[str, Array], dict[str, tuple[str, ...]]], random: Any
) -> None:
    arrays, made, _ = case
    name = random.choice(sorted(made))
    bits = made[name].reshape(-1).view(np.uint8)
    bits[random.randrange(len(bits))] ^= 1 << random.randrange(8)
    matches = explained(tensors(**arrays), tensors(**made))
    assert name not in matches


def test_equal_compares_across_chunks() -> None:
    x = np.arange(3 << 18, dtype="i4").reshape(3, 1 << 18)
    assert equal(tensor(x), tensor(x.copy()))
    y = x.copy()
    y[2, -1] ^= 1
    assert not equal(tensor(x), tensor(y))
    assert not equal(tensor(x), tensor(x[:2]))


def test_an_expression_names_its_sources() -> None:
    match = Match("y", Permute(Source("x"), (1, 0)), "transposed")
    assert match.sources == ("x",)
    assert match.text == "transpose(x)"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_biases_go_the_way_of_their_weights(value: float) -> None:
    parts, split = {}, {}
    for k in range(3):
        weights = {n: normal(size, 6, seed=10 * k + ord(n)) for n, size in (("q", 8), ("k", 4), ("v", 4))}
        for n, w in weights.items():
            parts |= {f"{k}.{n}.weight": tensor(w), f"{k}.{n}.bias": tensor(np.full(len(w), value, "f4"))}
        split[f"h{k}.qkv.kernel"] = tensor(np.concatenate(list(weights.values())).T)
        split[f"h{k}.qkv.bias"] = tensor(np.full(16, value, "f4"))
    matches = explained(parts, split)
    for k in range(3):
        match = matches[f"h{k}.qkv.bias"]
        assert match.sources == (f"{k}.q.bias", f"{k}.k.bias", f"{k}.v.bias")
        assert not match.certain
        assert match.why


def test_one_value_throughout_is_never_certain() -> None:
    for values in (np.zeros(32, "f4"), np.ones(4, "c16"), np.array(5), np.full((3, 3), -1, "i1")):
        matches = explained(tensors(x=values, w=normal(4, 5)), tensors(y=values, w=normal(4, 5)))
        assert matches["y"].sources == ("x",)
        assert not matches["y"].certain
        assert matches["y"].why
    assert explained(tensors(x=normal(32)), tensors(y=normal(32)))["y"].certain


def test_counters_and_constants_that_kept_their_names_did_not_move() -> None:
    w = normal(6, 6)
    result = find(
        tensors(n1=np.array(10), n2=np.array(20), x=normal(32, seed=1), y=np.zeros(32, "f4"), w=w),
        tensors(n1=np.array(20), n2=np.array(30), x=np.zeros(32, "f4"), y=normal(32, seed=2), w=w),
    )
    assert [match.target for match in result.pairs] == ["w"]
    assert result.backward == ()
    assert set(result.unmatched_a) | set(result.constants_a) == {"n1", "n2", "x", "y"}


def test_tiny_tensors_are_found_under_their_own_names() -> None:
    x, half = normal(2, 2), normal(3).astype("f2")
    assert gist(tensors(x=x, h=normal(3)), tensors(x=x.T, h=half)) == {
        "x": ("transposed", ("x",)),
        "h": ("cast", ("h",)),
    }
    assert gist(tensors(s=np.array([3])), tensors(s=np.array([[3]]))) == {"s": ("reshaped", ("s",))}


def test_votes_are_counted_only_where_there_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptkit.match.finder.settle import Votes

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Votes, "add", refuse)
    x, y = normal(8, 8, seed=1), normal(8, 8, seed=2)
    assert len(find(tensors(x=x, y=y), tensors(x=x, z=y)).pairs) == 2


def test_many_equal_tensors_share_one_list_of_choices() -> None:
    count = 4000
    zeros = tensor(np.zeros(8, "f4"))
    a = {f"layers.{k}.bias": zeros for k in range(count)}
    b = {f"h.{k}.b": zeros for k in range(count)}
    tracemalloc.start()
    try:
        assert [m.sources[0] for m in find(a, b).pairs] == list(a)
        assert tracemalloc.get_traced_memory()[1] < 5000 * count
    finally:
        tracemalloc.stop()


def test_large_tensors_are_told_apart_by_their_ends(tmp_path: Path) -> None:
    """Stored in files, so that they need not be fingerprinted; what shares its ends with another one is not guessed."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the test extra")
    one, two, three = (normal(160, 128, seed=seed) for seed in range(3))
    same_ends = two.copy()
    same_ends[0, 0], same_ends[-1, -1] = one[0, 0], one[-1, -1]
    filled = np.full((160, 128), 0.5, "f4")
    a = {
        "one": one,
        "two": two,
        "ends": same_ends,
        "three": three,
        "copy": three,
        "filled": filled,
        "more": filled,
    }
    b = {"x.a": one.T.copy(), "x.b": two, "x.c": same_ends.reshape(320, 64), "x.d": three, "x.e": filled}
    for name, arrays in (("a", a), ("b", b)):
        safetensors.save_file(arrays, tmp_path / name)
    matches = explained(*(ckptkit.read(str(tmp_path / name)) for name in ("a", "b")))
    sources = {name: match.sources for name, match in matches.items()}
    assert sources["x.a"] == ("one",)
    assert sources["x.b"] == ("two",)
    assert sources["x.c"] == ("ends",)
    assert {name for name, match in matches.items() if not match.certain} == {"x.d", "x.e"}


def test_a_strided_tensor_is_held_once() -> None:
    """A tensor that is not stored plainly has to be in memory to be rearranged, but not twice."""
    whole = normal(16384, 2048)
    storage = MemoryStorage(whole.tobytes(), object())
    half = view(storage, DTYPES["float32"], (16384, 1024), (2048, 2), 0)
    turned = tensor(whole[:, ::2].T.copy())
    tracemalloc.start()
    try:
        (match,) = find({"half": half}, {"turned": turned}).pairs
        assert tracemalloc.get_traced_memory()[1] < 1.25 * half.nbytes + (32 << 20)
    finally:
        tracemalloc.stop()
    assert match.how == "transposed"
