"""The writer against the safetensors library, huggingface_hub's sharding and torch's own files."""

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec, safe_open, serialize

import ckptkit as ck
from ckptkit.core.dtypes import BY_SAFETENSORS, DTYPES
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.plan import OutputFile, WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format.safetensors import layout, open_with_reference
from ckptkit.testing import sample, write
from tests.support import ROOT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> File:
    """A file of bytes to take tensors from."""
    path = tmp_path_factory.mktemp("store") / "bytes"
    path.write_bytes(bytes(i * 7 % 251 for i in range(4096)))
    return File.at(path)


def graph_of(tensors: dict[str, Tensor], **more: Any) -> TensorGraph:
    files = tuple({t.file: None for t in tensors.values() if t.file})
    return TensorGraph(tensors, Origin("source", "test", files=files), **more)


def join(file: OutputFile) -> bytes:
    out = bytearray(file.size)
    for piece in file.pieces:
        data = piece.content if isinstance(piece.content, bytes) else piece.content.tobytes()  # type: ignore[union-attr]
        out[piece.offset : piece.offset + piece.nbytes] = data
    return bytes(out)


def reference(tensors: dict[str, Tensor]) -> bytes:
    """The bytes that the library writes for these tensors. It takes torch's shape of float4, which counts pairs."""
    kept = {name: ctypes.create_string_buffer(t.tobytes(), t.nbytes + 1) for name, t in tensors.items()}
    specs = {}
    for name, t in tensors.items():
        narrow = t.dtype.bits == 4
        specs[name] = TensorSpec(
            dtype=t.dtype.torch,
            shape=[*t.shape[:-1], t.shape[-1] // 2] if narrow else list(t.shape),
            data_ptr=ctypes.addressof(kept[name]),
            data_len=t.nbytes,
        )
    return bytes(serialize(specs, {"format": "pt"}))


WRITTEN = sorted(spelling for spelling, dtype in BY_SAFETENSORS.items() if dtype.torch)  # float6 is not bound


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(WRITTEN), st.lists(st.integers(0, 4), max_size=3)),
        max_size=8,
    )
)
def test_the_bytes_are_those_of_the_reference_writer(
    store: File, wanted: dict[str, tuple[str, list[int]]]
) -> None:
    tensors = {}
    for n, (name, (spelling, shape)) in enumerate(wanted.items()):
        even = [*shape, 2] if spelling == "F4" else shape
        tensors[name] = Tensor(BY_SAFETENSORS[spelling], tuple(even), store, 64 * n)
    plan = layout(graph_of(tensors), "model.safetensors", WriteOptions(ties="copy"))
    assert join(plan.files[0]) == reference(tensors)


def test_all_dtypes_are_written_in_the_order_of_the_reference(tmp_path: Path) -> None:
    """float6 cannot be written from Python by the library, but it reads it: `dtypes` was laid out by hand."""
    graph = ck.read(ROOT / "fixtures/good/safetensors/dtypes.safetensors")
    shuffled = graph.select(sorted(graph))
    target = write(layout(shuffled, "m.safetensors", WriteOptions()), tmp_path)
    assert list(ck.read(target)) == list(graph)
    open_with_reference(str(target))
    bound = {name: t for name, t in graph.items() if t.dtype.torch}
    plan = layout(graph_of(bound), "m.safetensors", WriteOptions())
    assert join(plan.files[0]) == reference(bound)


def test_metadata_is_sorted_kept_and_says_pt(store: File) -> None:
    graph = graph_of({"a": Tensor(DTYPES["uint8"], (1,), store)}, metadata={"z": "1", "b": "ü\n\x1f"})
    data = join(layout(graph, "m.safetensors", WriteOptions()).files[0])
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert data[8 : 8 + length].startswith(
        '{"__metadata__":{"b":"ü\\n\\u001f","format":"pt","z":"1"},"a":'.encode()
    )
    graph = graph_of(dict(graph), metadata={"format": "mlx"})
    assert b'"__metadata__":{"format":"mlx"}' in join(layout(graph, "m.safetensors", WriteOptions()).files[0])


def test_a_tie_is_written_once_and_recorded_as_save_model_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    from safetensors.torch import load_model, save_model

    class Tied(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, 3, bias=False)
            self.b = torch.nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    model = Tied()
    save_model(model, str(tmp_path / "theirs.safetensors"))
    graph = ck.read(tmp_path / "theirs.safetensors")
    assert graph.ties() == {"b.weight": "a.weight"}
    ours = write(layout(graph, "ours.safetensors", WriteOptions()), tmp_path / "out")
    again = Tied()
    load_model(again, str(ours), strict=True)
    assert torch.equal(again.b.weight, model.a.weight)
    with safe_open(ours, "pt") as file:
        assert file.metadata() == {"format": "pt", "b.weight": "a.weight"}


def test_ties_are_told(tmp_path: Path) -> None:
    plan = layout(sample(tmp_path), "m.safetensors", WriteOptions())
    assert [(f.code, f.where) for f in plan.notes] == [("ties-in-metadata", "tied.weight")]
    assert layout(sample(tmp_path), "m.safetensors", WriteOptions(ties="copy")).notes == ()


def test_metadata_that_would_read_as_a_tie_is_refused(store: File) -> None:
    graph = graph_of({"a": Tensor(DTYPES["uint8"], (1,), store)}, metadata={"b": "a"})
    with pytest.raises(ck.CkptError) as refusal:
        layout(graph, "m.safetensors", WriteOptions())
    assert refusal.value.code == "name-collision"


@pytest.mark.parametrize("name", [d.name for d in DTYPES.values() if d.safetensors is None])
def test_what_the_format_lacks_is_refused_or_a_loss(store: File, name: str) -> None:
    graph = graph_of({"ok": Tensor(DTYPES["uint8"], (4,), store), "w": Tensor(DTYPES[name], (4,), store, 64)})
    if name in ("qint8", "quint8", "qint32"):
        plan = layout(graph, "m.safetensors", WriteOptions())
        assert [(f.code, f.where) for f in plan.losses] == [("quantized-as-integers", "w")]
        assert f'"dtype":"{ {"qint8": "I8", "quint8": "U8", "qint32": "I32"}[name] }"'.encode() in join(
            plan.files[0]
        )
        return
    with pytest.raises(ck.CkptError) as refusal:
        layout(graph, "m.safetensors", WriteOptions())
    assert (refusal.value.code, refusal.value.where) == ("dtype-unsupported", "w")


@pytest.mark.parametrize(
    ("name", "code"),
    [("__metadata__", "name-collision"), ("\ud800", "name-unwritable")],
    ids=["reserved", "surrogate"],
)
def test_names_that_cannot_be_written_are_refused(store: File, name: str, code: str) -> None:
    with pytest.raises(ck.CkptError) as refusal:
        layout(graph_of({name: Tensor(DTYPES["uint8"], (1,), store)}), "m.safetensors", WriteOptions())
    assert refusal.value.code == code


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 60), st.integers(0, 3))
def test_shards_are_split_as_huggingface_hub_splits_them(
    store: File, sizes: list[int], limit: int, ties: int
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the hf extra")
    tensors = {f"t{n}": Tensor(DTYPES["uint8"], (size,), store, 50 * n) for n, size in enumerate(sizes)}
    tensors |= {f"tie{n}": tensors[f"t{n}"] for n in range(min(ties, len(sizes))) if sizes[n]}
    graph = graph_of(tensors)
    split = hub.split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda t: t.nbytes,
        get_storage_id=lambda t: t.storage,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    plan = layout(graph, "model.safetensors", WriteOptions(max_shard_size=limit))
    dropped = graph.ties()
    theirs = {
        name: {t for t in names if t not in dropped} for name, names in split.filename_to_tensors.items()
    }
    ours = {
        f.path: {p.name for p in f.pieces if p.name} for f in plan.files if f.path.endswith(".safetensors")
    }
    assert ours == theirs
    if len(ours) == 1:
        assert len(plan.files) == 1
        return
    index = json.loads(join(plan.files[-1]))
    assert plan.files[-1].path == "model.safetensors.index.json"
    assert index["metadata"] == {"total_parameters": sum(sizes), "total_size": sum(sizes)}
    assert index["weight_map"] == {
        name: shard for name, shard in split.tensor_to_filename.items() if name not in dropped
    }
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    for file in plan.files[:-1]:
        text = join(file)
        metadata = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])["__metadata__"]
        assert metadata == {"format": "pt"} | {k: v for k, v in dropped.items() if v in ours[file.path]}


def test_shards_read_back_with_their_ties(tmp_path: Path) -> None:
    graph = sample(tmp_path)
    target = write(layout(graph, "model.safetensors", WriteOptions(max_shard_size=50)), tmp_path / "out")
    for path in (target, target.parent):
        back = ck.read(path)
        assert sorted(back) == sorted(graph)
        assert back.ties() == graph.ties()
        assert back.metadata == {"format": "pt", "note": "größer"}
        assert back.findings == ()
    for shard in target.parent.glob("*.safetensors"):
        open_with_reference(str(shard))


def test_the_reference_judges_what_was_written(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    target = write(layout(sample(tmp_path), "m.safetensors", WriteOptions()), tmp_path / "out")
    open_with_reference(str(target))
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        open_with_reference(str(target))
