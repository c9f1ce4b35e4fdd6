"""Sharded checkpoints: everything an index says is checked before anything is trusted."""

import json
import os
import time
from pathlib import Path

import pytest

import ckptkit as ck
from ckptkit.core.files import File
from tests.support import ROOT

GOOD = ROOT / "fixtures" / "good" / "folders"
INDEX = "model.safetensors.index.json"


def tiny(names: dict[str, int], **metadata: str) -> bytes:
    """A safetensors file of uint8 vectors: name → length."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, size in names.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(i % 251 for i in range(end))


def folder_of(path: Path, files: dict[str, bytes], weight_map: dict[str, str], **metadata: object) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    (path / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}), "utf-8")
    return path


def test_a_folder_and_its_index_read_alike() -> None:
    folder, index = ck.read(GOOD / "sharded"), ck.read(GOOD / "sharded" / INDEX)
    assert list(folder) == list(index) == ["a", "b"]
    assert folder.origin.path == str(GOOD / "sharded")
    assert index.origin.path == str(GOOD / "sharded" / INDEX)
    assert folder.origin.format == "safetensors"
    names = [os.path.basename(file.path) for file in index.origin.files]
    assert names == [INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert folder["b"].tobytes() == bytes(range(8))


def test_the_index_decides_between_two_copies(tmp_path: Path) -> None:
    files = {"base.safetensors": tiny({"a": 2, "b": 3}), "overlay.safetensors": tiny({"a": 5})}
    graph = ck.read(folder_of(tmp_path, files, {"a": "overlay.safetensors", "b": "base.safetensors"}))
    assert (graph["a"].shape, graph["b"].shape) == ((5,), (3,))
    assert [(f.code, f.where) for f in graph.findings] == [("shadowed-copy", "a")]


def test_shards_that_disagree_on_metadata_are_reported(tmp_path: Path) -> None:
    files = {"x.safetensors": tiny({"a": 1}, format="pt"), "y.safetensors": tiny({"b": 1}, format="mlx")}
    graph = ck.read(folder_of(tmp_path, files, {"a": "x.safetensors", "b": "y.safetensors"}))
    assert graph.metadata == {"format": "pt"}
    assert [(f.code, f.where) for f in graph.findings] == [("metadata-differs", "format")]


@pytest.mark.parametrize("total", [6, 6.0, None])
def test_a_true_or_absent_total_size_is_no_finding(tmp_path: Path, total: object) -> None:
    metadata = {} if total is None else {"total_size": total}
    graph = ck.read(
        folder_of(tmp_path, {"x.safetensors": tiny({"a": 6})}, {"a": "x.safetensors"}, **metadata)
    )
    assert graph.findings == ()


def test_missing_shards_are_named_and_counted(tmp_path: Path) -> None:
    weight_map = {f"t{n}": f"model-{n:05}-of-00009.safetensors" for n in range(1, 10)}
    files = {"model-00003-of-00009.safetensors": tiny({"t3": 1})}
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(folder_of(tmp_path, files, weight_map))
    assert refusal.value.code == "shard-missing"
    assert "8 of 9 shards" in str(refusal.value)
    assert "model-00001-of-00009.safetensors" in str(refusal.value)
    assert "and 5 more" in str(refusal.value)


def test_a_short_shard_tells_both_sizes(tmp_path: Path) -> None:
    data = tiny({"a": 100})
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(folder_of(tmp_path, {"x.safetensors": data[:-40]}, {"a": "x.safetensors"}))
    assert refusal.value.code == "truncated"
    assert f"{len(data)} bytes" in str(refusal.value)
    assert f"has {len(data) - 40}" in str(refusal.value)


def test_a_link_out_of_the_folder_is_refused_but_a_hub_cache_is_not(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes(tiny({"a": 1}))
    (blobs / "2").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}), "utf-8")
    (snapshot / "x.safetensors").symlink_to("../../blobs/1")
    (snapshot / INDEX).symlink_to("../../blobs/2")
    assert list(ck.read(snapshot)) == ["a"]

    secret = tmp_path / "secret"
    secret.write_bytes(tiny({"a": 1}))
    folder = folder_of(tmp_path / "evil", {}, {"a": "x.safetensors"})
    (folder / "x.safetensors").symlink_to(secret)
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(folder)
    assert refusal.value.code == "outside-folder"


def test_budgets_bound_the_index(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"x.safetensors": tiny({"a": 1}), "y.safetensors": tiny({"b": 1})},
                       {"a": "x.safetensors", "b": "y.safetensors"})  # fmt: skip
    for budgets in (ck.Budgets(index_bytes=20), ck.Budgets(entries=1)):
        with pytest.raises(ck.CkptError) as refusal:
            ck.read(folder, budgets=budgets)
        assert refusal.value.code == "over-budget"


def test_an_index_of_empty_objects_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    text = b'{"weight_map": {"a": "x"}, "metadata": [' + b"{}," * 200_000 + b"{}]}"
    (tmp_path / INDEX).write_bytes(text)
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(tmp_path)
    assert refusal.value.code == "over-budget"


def test_bin_shards_are_read_without_running_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": shared, "tied": shared}, tmp_path / names[0])
    torch.save({"b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / names[1])
    weight_map = {"a": names[0], "tied": names[0], "b": names[1]}
    text = json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map})
    (tmp_path / "pytorch_model.bin.index.json").write_text(text, "utf-8")
    graph = ck.read(tmp_path)
    assert graph.origin.format == "pytorch"
    assert graph.ties() == {"tied": "a"}
    assert graph.findings == ()
    assert graph["a"].tobytes() == shared.numpy().tobytes()


def test_hundreds_of_names_in_dozens_of_shards_cost_milliseconds(tmp_path: Path) -> None:
    files, weight_map = {}, {}
    for n in range(30):
        shard = f"model-{n + 1:05}-of-00030.safetensors"
        names = {f"model.layers.{n}.w{k}": 1 for k in range(24)}
        files[shard] = tiny(names)
        weight_map |= dict.fromkeys(names, shard)
    folder_of(tmp_path, files, weight_map, total_size=720)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(ck.read(tmp_path)) == 720
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25


def test_every_file_of_the_checkpoint_is_among_its_files() -> None:
    graph = ck.read(GOOD / "sharded_no_index")
    assert graph.origin.files == tuple(
        File.at(GOOD / "sharded_no_index" / f"model-0000{n}-of-00002.safetensors") for n in (1, 2)
    )
