"""`ckptkit inspect`, seen from outside."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.house import samples
from tests.support import Result

Run = Callable[..., Result]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    tensors = {"model.embed_tokens.weight": np.zeros((32, 8), np.float32)}
    for layer in range(12):
        at = f"model.layers.{layer}."
        tensors |= {f"{at}self_attn.{p}_proj.weight": np.ones((8, 8), np.float32) for p in "qkvo"}
        tensors |= {f"{at}mlp.{p}_proj.weight": np.ones((16, 8), np.float16) for p in ("gate", "up")}
        tensors[f"{at}input_layernorm.weight"] = np.array([0, 1, np.nan, np.inf, 2, 3, 4, 5], np.float32)
    tensors["model.norm.weight"] = np.ones(8, np.float32)
    path = tmp_path / "llama.safetensors"
    save_file(tensors, path, {"format": "pt"})
    return path


def raw(path: Path, *names: str) -> Path:
    """A safetensors file with these names, whatever is in them, and a hostile metadata value."""
    header: dict[str, Any] = {
        n: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, n in enumerate(names)
    }
    header["__metadata__"] = {"note\x1b[2J": "\x07\u202e\n"}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(len(names)))
    return path


def test_the_answer_comes_first(run: Run, llama: Path) -> None:
    done = run("inspect", llama)
    assert (done.code, done.stderr) == (0, "")
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith(f"{llama}   safetensors · ")
    assert "86 tensors" in first
    assert "parameters" in first
    assert second == "looks like  Llama (Hugging Face names), 12 layers, width 8, vocab 32"


def test_layers_are_folded(run: Run, llama: Path) -> None:
    text = run("inspect", llama).stdout
    assert re.search(r"^  model\.layers\.\{0\.\.11\}|^    layers\.\{0\.\.11\}", text, re.MULTILINE)
    assert re.search(r"self_attn\.\{k,o,q,v\}_proj\.weight +float32 +8×8 +256 B ×48$", text, re.MULTILINE)
    assert re.search(r"mlp\.\{gate,up\}_proj\.weight +float16 +16×8 +256 B ×24$", text, re.MULTILINE)
    assert len(text.splitlines()) < 15


def test_json_has_everything_of_the_contract(run: Run, llama: Path) -> None:
    document = run("inspect", llama, "--json").json
    assert document["schema"] == "ckptkit.inspect/1"
    assert (document["path"], document["format"]) == (str(llama), "safetensors")
    assert len(document["tensors"]) == 86
    by_name = {tensor["name"]: tensor for tensor in document["tensors"]}
    assert by_name["model.norm.weight"] == {
        "name": "model.norm.weight",
        "dtype": "float32",
        "shape": [8],
        "nbytes": 32,
        "kind": "",
        "section": "",
        "tied_to": None,
    }
    assert document["metadata"] == {"format": "pt"}
    for key in ("sections", "objects", "findings"):
        assert document[key] == []
    assert document["naming"]["scheme"] == "Llama"
    assert document["summary"]["nbytes"] == sum(tensor["nbytes"] for tensor in document["tensors"])


def test_stats_are_numbers_of_every_tensor(run: Run, llama: Path) -> None:
    pytest.importorskip("numpy")
    document = run("inspect", llama, "--json", "--stats").json
    by_name = {tensor["name"]: tensor["stats"] for tensor in document["tensors"]}
    found = by_name["model.layers.0.input_layernorm.weight"]
    assert (found["minimum"], found["maximum"], found["zeros"], found["nan"], found["inf"]) == (0, 5, 1, 1, 1)
    assert found["mean"] == pytest.approx(2.5)
    text = run("inspect", llama, "--stats").stdout
    assert re.search(r"layers\.0\.input_layernorm\.weight +0 +5 +2\.5 +1\.71 +1 NaN  1 Inf", text)
    line = next(
        x for x in run("inspect", llama, "--stats", "--lines").stdout.splitlines() if "norm.weight" in x
    )
    assert len(line.split("\t")) == 11


def test_lines_are_stable_columns(run: Run, llama: Path) -> None:
    lines = run("inspect", llama, "--lines").stdout.splitlines()
    assert len(lines) == 86
    assert "model.norm.weight\tfloat32\t[8]\t32" in lines


def test_several_files_one_of_them_bad(run: Run, llama: Path, tmp_path: Path) -> None:
    bad = samples.lfs_pointer(tmp_path / "lfs.bin")
    done = run("inspect", bad, llama, tmp_path / "missing")
    assert done.code == 2
    assert "86 tensors" in done.stdout
    assert done.stderr.count("error[") == 2
    documents = run("inspect", bad, llama, tmp_path / "missing", "--json")
    assert documents.code == 2
    assert [d["schema"] for d in documents.json] == [
        "ckptkit.error/1",
        "ckptkit.inspect/1",
        "ckptkit.error/1",
    ]
    assert documents.json[0]["path"] == str(bad)
    lines = run("inspect", llama, llama, "--lines").stdout.splitlines()
    assert len(lines) == 172
    assert all(line.startswith(f"{llama}\t") for line in lines)


def test_include_exclude_and_sort(run: Run, llama: Path) -> None:
    def names(*options: str) -> list[str]:
        return [
            line.split("\t")[0] for line in run("inspect", llama, "--lines", *options).stdout.splitlines()
        ]

    assert names("--include", "*.norm.*") == ["model.norm.weight"]
    assert len(names("--include", "*proj*", "--exclude", "*mlp*")) == 48
    assert names("--sort", "size")[0] == "model.embed_tokens.weight"
    layers = [n for n in names("--sort", "name") if n.endswith("input_layernorm.weight")]
    assert layers == [f"model.layers.{n}.input_layernorm.weight" for n in range(12)]
    done = run("inspect", llama, "--include", "nothing*")
    assert done.code == 2
    assert done.stderr.startswith("error[no-match]: ")


def test_markdown_is_a_table(run: Run, llama: Path) -> None:
    text = run("inspect", llama, "--format", "markdown").stdout
    assert text.startswith(f"### `{llama}`\n")
    assert "|---|---|---|---|---|" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in rows}) == 1


@pytest.mark.parametrize("style", ["text", "lines", "markdown"])
def test_hostile_names_are_harmless(run: Run, tmp_path: Path, style: str) -> None:
    path = raw(
        tmp_path / "x.safetensors", "a\x1b]0;pwned\x07", "b\nerror[fake]: c", "\u202edc", "d|e`f`", "", "\x00"
    )
    done = run("inspect", path, "--format", style)
    assert done.code == 0
    for line in done.stdout.split("\n"):
        assert line.replace("\t", "").isprintable()
    assert "\\x1b]0;pwned\\x07" in done.stdout.replace("\\\\", "\\").replace("\\]", "]")
    assert not any(line.startswith("error[") for line in done.stdout.splitlines())


def test_hostile_names_are_exact_in_json(run: Run, tmp_path: Path) -> None:
    names = ["a\x1b]0;pwned\x07", "b\nc", "\u202edc", "", "\x00", '"\\']
    done = run("inspect", raw(tmp_path / "x.safetensors", *names), "--json")
    assert [tensor["name"] for tensor in done.json["tensors"]] == names
    assert done.stdout.isascii()


def test_trainer_checkpoints(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"fc.weight": weight, "tied.weight": weight}
    path = tmp_path / "last.pt"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2, 3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 7, "best": float("nan"), "model": state, "optimizer": optimizer}, path)
    text = run("inspect", path).stdout
    assert "model 24 B (shown)" in text or "(shown)" in text
    assert "epoch 7" in text
    assert "tied.weight = fc.weight" in text
    document = run("inspect", path, "--json").json
    assert {t["name"]: t["tied_to"] for t in document["tensors"]} == {
        "fc.weight": None,
        "tied.weight": "fc.weight",
    }
    assert {t["section"] for t in document["tensors"]} == {"model"}
    assert [s["name"] for s in document["sections"]] == ["model", "optimizer"]
    values = {o["path"]: o["value"] for o in document["objects"]}
    assert (values["epoch"], values["best"]) == (7, "nan")
    everything = run("inspect", path, "--section", "all", "--json").json
    assert {t["section"] for t in everything["tensors"]} == {"model", "optimizer"}
    listed = run("inspect", path, "--objects").stdout
    assert re.search(r"^  epoch +int +7$", listed, re.MULTILINE)
    assert run("inspect", path, "--section", "nope").code == 2


def test_an_onnx_graph_is_told(run: Run, tmp_path: Path) -> None:
    path = samples.onnx(tmp_path / "x.onnx")
    text = run("inspect", path).stdout
    assert re.search(r"^graph +1 node · Gemm ×1$", text, re.MULTILINE)
    assert re.search(r"^inputs +x float32 1×3$", text, re.MULTILINE)
    graph = run("inspect", path, "--json").json["graph"]
    assert graph["nodes"] == 1
    assert graph["outputs"][0]["name"] == "y"


def test_quiet_leaves_notes_out(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    path = tmp_path / "x.pt"
    weights = {"w": torch.zeros(2)}
    torch.save({"state_dict": weights, "ema_state_dict": {"w": torch.ones(2)}}, path)
    assert "note " in run("inspect", path).stdout
    assert "note " not in run("inspect", path, "-q").stdout


def test_wrappers_come_with_the_way_to_take_them_off(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ddp.safetensors"
    save_file({"_orig_mod.module.a.weight": np.ones(2), "_orig_mod.module.a.bias": np.ones(2)}, path)
    text = run("inspect", path).stdout
    line = next(line for line in text.splitlines() if line.startswith("wrapped in  _orig_mod.module."))
    rule = re.search(r"--rules (\S+)", line)
    assert rule
    assert run("convert", path, tmp_path / "y.safetensors", "--rules", rule[1]).code == 0
    assert "wrapped" not in run("inspect", tmp_path / "y.safetensors").stdout


def test_long_values_are_shortened_for_people_and_whole_for_programs(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1), "log": "z" * 5000, "steps": list(range(1000))}, path)
    for options in ([], ["--objects"], ["--objects", "--format", "markdown"]):
        assert max(map(len, run("inspect", path, *options).stdout.splitlines())) < 400
    values = {leaf["path"]: leaf["value"] for leaf in run("inspect", path, "--json").json["objects"]}
    assert values == {"log": "z" * 5000, "steps": list(range(1000))}


@pytest.mark.parametrize("style", ["text", "lines", "markdown"])
def test_stats_and_objects_are_both_listed(run: Run, tmp_path: Path, style: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    path = tmp_path / "x.pt"
    torch.save({"w": torch.tensor([float("nan"), float("-inf"), 4.0]), "deep": {"note": "hello"}}, path)
    both = run("inspect", path, "--stats", "--objects", "--format", style).stdout
    assert re.search(r"^\W*w\W.*\b4(\.0)?\b", both, re.MULTILINE)
    assert re.search(r"^\W*deep\.note\b.*hello", both, re.MULTILINE)
    assert ("are of the finite values" in both) == (style != "lines")
    assert "finite" not in run("inspect", path, "--format", style).stdout


def test_one_is_not_several(run: Run, tmp_path: Path) -> None:
    names = ["embed_tokens", "norm"]
    names += [f"layers.0.self_attn.{p}_proj" for p in "qkvo"]
    names += [f"layers.0.mlp.{p}_proj" for p in ("gate", "up", "down")]
    names += ["layers.0.input_layernorm", "layers.0.post_attention_layernorm"]
    header = {
        f"model.{name}.weight": {"dtype": "U8", "shape": [1, 1], "data_offsets": [i, i + 1]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(len(names)))
    shown = run("inspect", path).stdout
    assert re.search(r"^looks like .*\b1 layer\b", shown, re.MULTILINE)
    assert "1 layers" not in shown


def test_strings_are_not_called_compressed(run: Run, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    words = onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [50], [b"x"] * 50)
    graph = onnx.helper.make_graph([], "g", [], [], [words])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    assert not re.search(r"^stored", run("inspect", tmp_path / "x.onnx").stdout, re.MULTILINE)


def test_the_size_of_a_file_with_more_than_weights_is_told(run: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    path = tmp_path / "x.pt"
    torch.save({"model": {"w": torch.zeros(5)}, "optimizer": {"m": torch.zeros(500_000)}}, path)
    assert " · 20 B of a file of 2.00 MB · " in run("inspect", path).stdout.splitlines()[0]
    torch.save({"model": {"w": torch.zeros(500_000)}, "optimizer": {"m": torch.zeros(5)}}, path)
    assert " · 2.00 MB · 1 tensor · " in run("inspect", path).stdout.splitlines()[0]


def test_what_was_not_run_is_named(run: Run, fixtures_dir: Path) -> None:
    text = run("inspect", fixtures_dir / "good" / "trainer.pt").stdout
    assert re.search(r"^not run +argparse\.Namespace", text, re.MULTILINE)
