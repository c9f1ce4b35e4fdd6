"""One tensor's values: slices, files, and names that were nearly right."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.dtypes import dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.storage import MemoryStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.verbs.show import find, native, nearest, parse_slice, save_npy, show


def graph(**arrays: Any) -> TensorGraph:
    tensors = {}
    for name, array in arrays.items():
        data = array.tobytes()
        strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
        tensors[name] = view(MemoryStorage(data, name), dtype(array.dtype.name), array.shape, strides, 0)
    return TensorGraph(tensors, Origin("x.safetensors", "safetensors"))


W = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


def test_values_and_statistics() -> None:
    found = show(graph(w=W), "w")
    assert np.array_equal(found.values, W)
    assert found.statistics is not None
    assert (found.statistics.minimum, found.statistics.maximum, found.statistics.zeros) == (0, 59, 1)
    assert show(graph(w=W), "w", measure=False).statistics is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", W[0]),
        ("0:2", W[0:2]),
        (":, -1", W[:, -1]),
        ("[..., ::2]", W[..., ::2]),
        ("1,...,0", W[1, ..., 0]),
        ("2,3,4", W[2, 3, 4]),
        (":0", W[:0]),
    ],
)
def test_a_slice_is_what_numpy_gives(text: str, expected: Any) -> None:
    found = show(graph(w=W), "w", parse_slice(text))
    assert np.array_equal(found.values, expected)
    assert found.statistics is not None
    assert found.statistics.maximum == (expected.max() if expected.size else None)


@given(
    st.permutations(range(3)),
    st.lists(
        st.integers(-3, 2)
        | st.builds(slice, *[st.none() | st.integers(-6, 6)] * 2, st.sampled_from([1, 2, -1, -3])),
        max_size=3,
    ),
)
def test_a_slice_of_any_view_is_what_numpy_gives(order: list[int], index: list[Any]) -> None:
    values = W.transpose(order)
    strides = [n // 4 for n in values.strides]
    tensor = view(MemoryStorage(W.tobytes(), "w"), dtype("float32"), values.shape, strides, 0)
    found = show(TensorGraph({"w": tensor}, Origin("x.pt", "pytorch")), "w", tuple(index))
    assert np.array_equal(found.values, values[tuple(index)])
    assert found.values.shape == values[tuple(index)].shape


def test_of_a_tensor_made_of_nothing_only_the_part_is_read(tmp_path: Path) -> None:
    """Zero strides make 4 TB of 4 bytes."""
    tensor = view(
        MemoryStorage(np.float32(7).tobytes(), "w"), dtype("float32"), (1 << 20, 1 << 20), (0, 0), 0
    )
    bomb = TensorGraph({"w": tensor}, Origin("x.pt", "pytorch"))
    part = show(bomb, "w", parse_slice("-2:,::-400000"))
    assert part.values.tolist() == [[7.0] * 3] * 2
    assert part.statistics is not None
    assert part.statistics.mean == 7
    save_npy(part, tmp_path / "part.npy")
    for index in ((), parse_slice("::2")):
        with pytest.raises(CkptError) as caught:
            show(bomb, "w", index)
        assert caught.value.code == "expands"


def test_the_checkpoint_itself_is_not_overwritten(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path, link = tmp_path / "x.safetensors", tmp_path / "x.npy"
    save_file({"w": W}, path)
    link.hardlink_to(path)
    shown = show(ck.read(path), "w")
    for target in (path, link):
        with pytest.raises(CkptError) as caught:
            save_npy(shown, target, overwrite=True)
        assert caught.value.code == "target-is-source"
    assert np.array_equal(ck.read(path)["w"].numpy(), W)


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "0,,1", "::0", "1.5", "__import__", "....", "0 1"])
def test_what_is_no_slice_is_refused(text: str) -> None:
    with pytest.raises(CkptError) as caught:
        parse_slice(text)
    assert caught.value.code == "bad-slice"


@pytest.mark.parametrize("text", ["0,0,0,0", "9", "...,...", ":,:,:,:"])
def test_a_slice_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(CkptError) as caught:
        show(graph(w=W), "w", parse_slice(text))
    assert caught.value.code == "bad-slice"


@given(
    st.lists(
        st.integers(-4, 3)
        | st.tuples(*[st.none() | st.integers(-5, 5)] * 2, st.sampled_from([None, 1, 2, -1])).map(
            lambda s: slice(*s)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_slices_survive_being_written_out(index: list[Any]) -> None:
    def text(one: Any) -> str:
        if isinstance(one, int):
            return str(one)
        return ":".join("" if n is None else str(n) for n in (one.start, one.stop, one.step))

    assert parse_slice(",".join(map(text, index))) == tuple(index)


def test_npy_files_hold_the_values(tmp_path: Path) -> None:
    path = tmp_path / "w.npy"
    size = save_npy(show(graph(w=W), "w", parse_slice("1:,::2")), path)
    assert np.array_equal(np.load(path), W[1:, ::2])
    assert path.stat().st_size == size
    with pytest.raises(CkptError) as caught:
        save_npy(show(graph(w=W), "w"), path)
    assert caught.value.code == "exists"
    save_npy(show(graph(w=W), "w"), path, overwrite=True, upcast="float64")
    assert np.load(path).dtype == np.float64
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"])
def test_what_npy_lacks_needs_an_upcast(tmp_path: Path, kind: str) -> None:
    values = np.array([1, -2, 3], getattr(ml_dtypes, kind))
    if kind == "int4":
        data = bytes([(1 & 15) | ((-2 & 15) << 4), 3])
        tensor = view(MemoryStorage(data, "w"), dtype(kind), (3,), (1,), 0)
        source = TensorGraph({"w": tensor}, Origin("x", "onnx"))
    else:
        source = graph(w=values)
    shown = show(source, "w")
    with pytest.raises(CkptError) as caught:
        save_npy(shown, tmp_path / "w.npy")
    assert caught.value.code == "dtype-unsupported"
    assert caught.value.hint is not None
    upcast = caught.value.hint.removeprefix("--upcast ")
    save_npy(shown, tmp_path / "w.npy", upcast=upcast)
    assert np.array_equal(np.load(tmp_path / "w.npy"), values.astype(upcast))


def test_a_downcast_is_no_upcast(tmp_path: Path) -> None:
    for name, upcast in (
        ("float32", "float16"),
        ("int64", "int32"),
        ("complex64", "float64"),
        ("float32", "int64"),
    ):
        with pytest.raises(CkptError) as caught:
            save_npy(show(graph(w=np.ones(2, name)), "w"), tmp_path / "w.npy", upcast=upcast)
        assert caught.value.code == "dtype-unsupported"
    assert not list(tmp_path.iterdir())


def test_large_strided_parts_are_written_in_blocks(tmp_path: Path) -> None:
    big = np.arange(3 << 20, dtype=np.int32).reshape(3, 1 << 10, 1 << 10)
    save_npy(show(graph(w=big), "w", parse_slice(":,:,::2"), measure=False), tmp_path / "w.npy")
    assert np.array_equal(np.load(tmp_path / "w.npy"), big[:, :, ::2])
    save_npy(show(graph(w=big), "w", parse_slice("0,0,0"), measure=False), tmp_path / "one.npy")
    assert np.load(tmp_path / "one.npy") == 0


NAMES = [f"model.layers.{n}.self_attn.{p}_proj.weight" for n in range(3) for p in "qkvo"] + ["lm_head.weight"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("layers.2.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj.weight"),
        ("module.model.layers.2.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj.weight"),
        ("q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("lm_haed.weight", "lm_head.weight"),
        ("model.layers.2.self_attn.o_proj.wieght", "model.layers.2.self_attn.o_proj.weight"),
    ],
)
def test_near_misses_are_named(asked: str, meant: str) -> None:
    assert nearest(asked, NAMES)[0] == meant


def test_an_unknown_name_is_an_error_with_a_hint() -> None:
    with pytest.raises(CkptError) as caught:
        find(graph(**{"fc.weight": W}), "fc.wieght")
    assert caught.value.code == "no-such-tensor"
    assert caught.value.hint == "did you mean fc.weight?"
    with pytest.raises(CkptError) as caught:
        find(graph(), "x")
    assert "ckptkit inspect" in str(caught.value.hint)


def test_a_plain_tensor_is_not_read_for_a_slice(tmp_path: Path, run: Any) -> None:
    """A slice of a sparse file of 64 GB costs its own bytes."""
    import json
    import struct

    header = {"w": {"dtype": "F32", "shape": [1 << 24, 1 << 10], "data_offsets": [0, 1 << 36]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + (1 << 36))
    found = show(ck.read(path), "w", parse_slice("-1,:3"), measure=False)
    assert found.values.tolist() == [0, 0, 0]


def test_strings_are_shown(tmp_path: Path) -> None:
    texts = ["a", "", "日本", "b\n\x1b"]
    data = b"".join(len(t.encode()).to_bytes(4, "little") + t.encode() for t in texts)

    class Strings:
        identity, extents, nbytes = "s", (), len(data)

        def memory(self, limit: int) -> int:
            return limit

        def chunks(self, limit: int, tally: object = None) -> Any:
            yield data

    tensor = Tensor(dtype("string"), (2, 2), source=Strings())
    source = TensorGraph({"s": tensor}, Origin("x.onnx", "onnx"))
    assert show(source, "s").values.tolist() == [texts[:2], texts[2:]]
    one = show(source, "s", parse_slice("1,0"))
    assert native(one.values).tolist() == "日本"
    with pytest.raises(CkptError) as caught:
        save_npy(show(source, "s"), tmp_path / "s.npy")
    assert caught.value.code == "dtype-unsupported"
