"""A Hugging Face folder converted to a folder loads in transformers and gives the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck

torch = pytest.importorskip("torch", reason="needs the torch extra")
transformers = pytest.importorskip("transformers", reason="needs the hf extra")


def logits(folder: Path, **options: Any) -> Any:
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    with torch.no_grad():
        return model(torch.arange(12).reshape(1, 12)).logits


@pytest.mark.parametrize("to", ["safetensors", "pytorch"])
@pytest.mark.parametrize("shard", [None, 60_000])
def test_a_folder_serves_as_before(fixtures_dir: Path, tmp_path: Path, to: str, shard: int | None) -> None:
    source = fixtures_dir / "good" / "llama"
    ck.convert(source, tmp_path / "out", to=to, max_shard_size=shard, verify=True)
    suffix = {"safetensors": ".safetensors", "pytorch": ".bin"}[to]
    assert len(list((tmp_path / "out").glob(f"*{suffix}"))) == (1 if shard is None else 3)
    assert torch.equal(logits(tmp_path / "out"), logits(source))
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_a_cast_folder_says_so_and_equals_the_cast_model(fixtures_dir: Path, tmp_path: Path) -> None:
    source = fixtures_dir / "good" / "llama"
    ck.convert(source, tmp_path / "out", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    result = logits(tmp_path / "out", dtype="auto")
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, logits(source, dtype=torch.bfloat16))


def test_a_file_becomes_a_folder_and_back(fixtures_dir: Path, tmp_path: Path) -> None:
    source = fixtures_dir / "good" / "llama"
    receipt = ck.convert(source, tmp_path / "one.safetensors")
    assert "config.json" in receipt.left_out
    ck.convert(tmp_path / "one.safetensors", tmp_path / "again", max_shard_size=80_000)
    assert sorted(ck.read(tmp_path / "again")) == sorted(ck.read(source))
