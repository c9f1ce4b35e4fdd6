"""Which weights of a folder count, and which side files travel with them."""

import json
import os
from pathlib import Path

import pytest

import ckptkit as ck
from ckptkit.core.plan import OutputFile
from ckptkit.core.tensor import Extent
from ckptkit.format.folder import companions, weights_name
from tests.format.test_shards import INDEX, tiny
from tests.support import ROOT

GOOD = ROOT / "fixtures" / "good" / "folders"
ONE, TWO = tiny({"one": 1}), tiny({"two": 2})


def put(folder: Path, **files: bytes) -> Path:
    """Files by name, `__` for a dot."""
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def code_of(folder: Path) -> str:
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(folder)
    return refusal.value.code


def text(file: OutputFile) -> bytes:
    content = file.pieces[0].content if file.pieces else b""
    assert not hasattr(content, "dtype")
    if isinstance(content, Extent):
        return Path(content.file.path).read_bytes()[content.offset : content.offset + content.nbytes]
    assert isinstance(content, bytes)
    return content


def test_a_single_file_comes_before_an_index_and_safetensors_before_bin(tmp_path: Path) -> None:
    put(tmp_path, pytorch_model__bin=TWO, model__safetensors=ONE)
    (tmp_path / INDEX).write_text('{"weight_map": {"two": "gone.safetensors"}}')
    graph = ck.read(tmp_path)
    assert list(graph) == ["one"]
    (note,) = graph.findings
    assert (note.code, note.severity) == ("passed-over", "note")
    assert INDEX in note.message
    assert "pytorch_model.bin" in note.message
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(tmp_path)
    assert refusal.value.code == "shard-missing"
    (tmp_path / INDEX).unlink()
    assert list(ck.read(tmp_path)) == ["two"]


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "pytorch_model.fp16.bin",
        "unet.fp16.safetensors",
    ],
)
def test_a_variant_is_read_only_when_it_is_named(tmp_path: Path, name: str) -> None:
    put(tmp_path, model__safetensors=ONE)
    (tmp_path / name).write_bytes(TWO)
    assert list(ck.read(tmp_path)) == ["one"]
    assert list(ck.read(tmp_path, variant="fp16")) == ["two"]
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(tmp_path, variant="bf16")
    assert (refusal.value.code, refusal.value.hint) == ("variant-missing", "there is fp16")


def test_a_variant_alone_is_not_taken_silently(tmp_path: Path) -> None:
    (tmp_path / "model.fp16.safetensors").write_bytes(TWO)
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(tmp_path)
    assert (refusal.value.code, refusal.value.hint) == ("variant-missing", "--variant fp16")


@pytest.mark.parametrize("index", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"])
def test_the_index_of_a_variant_has_two_spellings(tmp_path: Path, index: str) -> None:
    put(tmp_path, model__safetensors=ONE)
    (tmp_path / "model.fp16-00001-of-00001.safetensors").write_bytes(TWO)
    (tmp_path / index).write_text('{"weight_map": {"two": "model.fp16-00001-of-00001.safetensors"}}')
    assert list(ck.read(tmp_path, variant="fp16")) == ["two"]


def test_a_numbered_set_of_a_variant_needs_no_index(tmp_path: Path) -> None:
    put(tmp_path, model__safetensors=ONE)
    for n, data in ((1, ONE), (2, TWO)):
        (tmp_path / f"model.fp16-0000{n}-of-00002.safetensors").write_bytes(data)
    assert list(ck.read(tmp_path, variant="fp16")) == ["one", "two"]


def test_other_layouts_and_training_state_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    put(
        tmp_path,
        model__safetensors=ONE,
        optimizer__pt=b"",
        training_args__bin=b"",
        tf_model__h5=b"",
        consolidated__safetensors=TWO,
    )
    graph = ck.read(tmp_path)
    assert list(graph) == ["one"]
    (note,) = graph.findings
    assert "consolidated.safetensors, tf_model.h5, original/" in note.message
    assert "optimizer" not in note.message


def test_one_rank_is_read_as_it_stands_and_several_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "consolidated.00.pth").write_bytes(ONE)
    assert list(ck.read(tmp_path)) == ["one"]
    (tmp_path / "consolidated.01.pth").write_bytes(ONE)
    put(tmp_path, tokenizer__model=b"", params__json=b"{}")
    graph = ck.read(tmp_path)
    assert list(graph) == ["0.one", "1.one"]
    assert [finding.code for finding in graph.findings] == ["rank-files"]
    assert [Path(file.path).name for file in graph.origin.files] == [
        "consolidated.00.pth",
        "consolidated.01.pth",
    ]
    lone = ck.read(tmp_path / "consolidated.01.pth")
    assert (list(lone), [finding.code for finding in lone.findings]) == (["one"], ["rank-files"])
    (tmp_path / "other.pth").write_bytes(ONE)
    assert code_of(tmp_path) == "ambiguous-weights"
    put(tmp_path, model__safetensors=TWO)
    assert list(ck.read(tmp_path)) == ["two"]


@pytest.mark.parametrize("there", [(1,), (0, 2), (1, 2), (0, 1, 99)])
def test_a_rank_set_with_a_gap_is_refused(tmp_path: Path, there: tuple[int, ...]) -> None:
    for rank in there:
        (tmp_path / f"consolidated.{rank:02}.pth").write_bytes(ONE)
    assert code_of(tmp_path) == "shard-missing"


def test_ranks_in_folders_have_one_number_or_two(tmp_path: Path) -> None:
    for tensor, pipeline in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for root, name in (("t", f"mp_rank_0{tensor}"), ("p", f"mp_rank_0{tensor}_00{pipeline}")):
            (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name / "model_optim_rng.pt").write_bytes(ONE)
    assert list(ck.read(tmp_path / "t")) == ["0.one", "1.one"]
    assert list(ck.read(tmp_path / "p")) == ["0.0.one", "0.1.one", "1.0.one", "1.1.one"]
    (tmp_path / "p" / "mp_rank_00_001" / "model_optim_rng.pt").unlink()
    assert code_of(tmp_path / "p") == "shard-missing"
    (tmp_path / "p" / "mp_rank_05").mkdir()
    (tmp_path / "p" / "mp_rank_05" / "model_rng.pt").write_bytes(ONE)
    assert code_of(tmp_path / "p") == "rank-files"


def test_ranks_must_be_wrapped_alike(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    torch.save({"model": {"a": torch.ones(2)}, "iteration": 3}, tmp_path / "consolidated.00.pth")
    torch.save({"model": {"a": torch.ones(2)}, "iteration": 3}, tmp_path / "consolidated.01.pth")
    graph = ck.read(tmp_path)
    assert list(graph) == ["0.a", "1.a"]
    assert [leaf.path for leaf in graph.objects] == ["0.iteration", "1.iteration"]
    torch.save({"net": {"a": torch.ones(2)}, "iteration": 3}, tmp_path / "consolidated.01.pth")
    assert code_of(tmp_path) == "rank-files"


def test_a_component_named_by_its_path_is_read() -> None:
    pipeline = ROOT / "fixtures" / "hostile" / "folders" / "pipeline"
    assert list(ck.read(pipeline / "unet")) == ["a"]
    adapter = ROOT / "fixtures" / "hostile" / "folders" / "adapter"
    assert list(ck.read(adapter / "adapter_model.safetensors")) == ["a"]


def test_one_shard_can_be_read_by_its_path() -> None:
    graph = ck.read(GOOD / "sharded" / "model-00002-of-00002.safetensors")
    assert list(graph) == ["b"]
    assert [(f.code, f.message[:20]) for f in graph.findings] == [("lone-shard", "this is shard 2 of 2")]
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(GOOD / "sharded" / "model-00002-of-00002.safetensors", variant="fp16")
    assert refusal.value.code == "variant-missing"


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o000)
        with pytest.raises(ck.CkptError) as closed:
            ck.read(tmp_path / "closed")
        assert closed.value.code == "io-error"
    with pytest.raises(ck.CkptError) as refusal:
        ck.read(tmp_path / "nothing")
    assert refusal.value.code == "not-found"


@pytest.mark.parametrize(
    ("format_name", "name"),
    [("safetensors", "model.safetensors"), ("pytorch", "pytorch_model.bin"), ("onnx", "model.onnx")],
)
def test_weights_get_the_name_that_loaders_look_for(format_name: str, name: str) -> None:
    assert weights_name(format_name) == name


def test_a_diffusers_component_keeps_its_stem() -> None:
    graph = ck.read(GOOD / "diffusers_component")
    assert weights_name("safetensors", graph) == "diffusion_pytorch_model.safetensors"
    assert weights_name("pytorch", graph) == "diffusion_pytorch_model.bin"


def test_side_files_are_carried_and_code_only_on_request() -> None:
    graph = ck.read(GOOD / "single")
    carried = {file.path: text(file) for file in companions(graph, "safetensors")}
    assert sorted(carried) == ["config.json", "generation_config.json", "tokenizer.json"]
    for name, data in carried.items():
        assert data == (GOOD / "single" / name).read_bytes()
    with_code = [file.path for file in companions(graph, "safetensors", with_code=True)]
    assert "modeling_tiny.py" in with_code


def test_a_file_or_another_index_has_no_companions_but_the_folders_index_has() -> None:
    assert companions(ck.read(GOOD / "single" / "model.safetensors"), "safetensors") == ()
    graph = ck.read(GOOD / "sharded" / INDEX)
    assert [file.path for file in companions(graph, "safetensors")] == ["config.json"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"torch_dtype": "float32", "a": 1}, {"torch_dtype": "bfloat16", "a": 1}),
        ({"dtype": "float16"}, {"dtype": "bfloat16"}),
        ({"dtype": "float32", "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        ({"a": 1}, {"a": 1, "torch_dtype": "bfloat16"}),
        ({"torch_dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32", "x": 2}, "other": {"dtype": "float32"}},
            {
                "dtype": "bfloat16",
                "text_config": {"dtype": "bfloat16", "x": 2},
                "other": {"dtype": "float32"},
            },
        ),
    ],
)
def test_config_states_the_dtype_of_a_cast(tmp_path: Path, before: object, after: object) -> None:
    put(tmp_path, model__safetensors=ONE, config__json=json.dumps(before).encode())
    graph = ck.read(tmp_path)
    (config,) = companions(graph, "safetensors", "bfloat16")
    assert json.loads(text(config)) == after
    assert list(json.loads(text(config))) == list(after)  # type: ignore[call-overload]
    (config,) = companions(graph, "safetensors")
    assert text(config) == json.dumps(before).encode()


def test_a_quantization_config_that_fits_no_tensor_is_an_error(tmp_path: Path) -> None:
    config = json.dumps({"quantization_config": {"quant_method": "fp8"}}).encode()
    plain = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    put(tmp_path, config__json=config, model__safetensors=len(plain).to_bytes(8, "little") + plain + b"xy")
    with pytest.raises(ck.CkptError) as refusal:
        companions(ck.read(tmp_path), "safetensors")
    assert refusal.value.code == "stale-quantization"
    assert "fp8" in str(refusal.value)
    put(tmp_path, model__safetensors=ONE)  # uint8: packed weights
    assert len(companions(ck.read(tmp_path), "safetensors")) == 1


def test_a_side_file_that_links_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    put(folder, model__safetensors=ONE)
    (tmp_path / "secret").write_text("key")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ck.CkptError) as refusal:
        companions(ck.read(folder), "safetensors")
    assert refusal.value.code == "outside-folder"


def test_sentence_transformers_modules_travel(tmp_path: Path) -> None:
    put(tmp_path, model__safetensors=ONE, modules__json=b"[]", LICENSE=b"Apache")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_bytes(b"{}")
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "config.json").write_bytes(b"{}")
    carried = [file.path for file in companions(ck.read(tmp_path), "safetensors")]
    assert carried == ["LICENSE", "modules.json", "1_Pooling/config.json"]
