"""convert and diff by rules, from outside: files, presets, ONNX edges, receipts, the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptkit as ck
from ckptkit.core.stream import SEGMENT
from tests.support import Result

RULES = """ckptkit-rules: 1
about: test
let: {H: config.heads}
rules:
- {from: "l.{i}.qkv", to: ["m.{i}.q", "m.{i}.k", "m.{i}.v"], split: {dim: 0}}
- {from: "e.{e}.w", to: experts, stack: {over: e, dim: 0}}
- {from: "l.{i}.rope", to: "m.{i}.rope", ops: [{heads: {dim: 0, view: [H, -1, 2], order: [0, 2, 1]}}]}
- {from: norm, to: norm.weight, ops: [{add: -1}]}
- {tie: head, to: experts}
"""


@pytest.fixture
def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"l.0.qkv": (9, 4), "l.1.qkv": (9, 4), "l.0.rope": (8, 3), "l.1.rope": (8, 3), "norm": (5,)}
    made = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    return made | {f"e.{e}.w": rng.normal(size=(SEGMENT // 64, 24)).astype("f4") for e in range(3)}


@pytest.fixture
def source(tmp_path: Path, arrays: dict[str, Any]) -> Path:
    (tmp_path / "config.json").write_text('{"heads": 2}')
    (tmp_path / "r.yaml").write_text(RULES)
    save_file(arrays, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_convert_by_a_rule_file(source: Path, arrays: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"b.{suffix}"
    receipt = ck.convert(
        source, target, rules=[str(tmp_path / "r.yaml")], verify=True, receipt=tmp_path / "r.json"
    )
    made = {name: tensor.numpy() for name, tensor in ck.read(target).items()}
    for i in (0, 1):
        assert np.array_equal(np.concatenate([made[f"m.{i}.{x}"] for x in "qkv"]), arrays[f"l.{i}.qkv"])
        rope = arrays[f"l.{i}.rope"].reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3)
        assert np.array_equal(made[f"m.{i}.rope"], rope)
    assert np.array_equal(made["experts"], np.stack([arrays[f"e.{e}.w"] for e in range(3)]))
    assert np.array_equal(made["norm.weight"], arrays["norm"] - np.float32(1))
    assert receipt.ties == {"head": "experts"} or receipt.ties == {"experts": "head"}
    told = {row["name"]: row for row in json.loads((tmp_path / "r.json").read_text())["tensors"]}
    assert told["experts"]["sources"] == ["e.0.w", "e.1.w", "e.2.w"]
    assert told["experts"]["operations"] == ["stack(over=e, dim=0)"]
    assert told["experts"]["rule"].endswith("r.yaml:6")


def test_there_and_back(source: Path, arrays: dict[str, Any], tmp_path: Path) -> None:
    rules = RULES.replace("- {from: norm, to: norm.weight, ops: [{add: -1}]}", "- {keep: norm}")
    rules = rules.replace('dim: 0}}\n- {from: "l.{i}.rope', 'dim: 0, parts: 3}}\n- {from: "l.{i}.rope')
    (tmp_path / "x.yaml").write_text(rules)
    ck.convert(source, tmp_path / "b.safetensors", rules=[str(tmp_path / "x.yaml")])
    ck.convert(
        tmp_path / "b.safetensors", tmp_path / "c.safetensors", rules=[str(tmp_path / "x.yaml")], reverse=True
    )
    back = load_file(tmp_path / "c.safetensors")
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    same = ck.diff(source, tmp_path / "b.safetensors", rules=[str(tmp_path / "x.yaml")])
    assert same.equal


def test_several_rules_follow_each_other(source: Path, tmp_path: Path) -> None:
    decided = ck.plan(source, tmp_path / "b.pt", rules=[str(tmp_path / "r.yaml"), "add:net."], let={"H": 4})
    assert decided.trace["net.experts"].sources == ("e.0.w", "e.1.w", "e.2.w")
    assert decided.names["net.m.0.k"] == "l.0.qkv"
    with pytest.raises(ck.CkptError) as caught:
        ck.plan(source, tmp_path / "b.pt", rules=["add:net."], let={"H": 4})
    assert caught.value.code == "rule-value"


def test_memory_is_bounded_by_what_the_plan_says(source: Path, tmp_path: Path) -> None:
    plain = ck.plan(source, tmp_path / "b.safetensors", rules=["add:x."]).memory
    joined = ck.plan(source, tmp_path / "b.safetensors", rules=[str(tmp_path / "r.yaml")]).memory
    assert plain <= joined < plain + (64 << 20)


def test_the_command_line(source: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    file = tmp_path / "r.yaml"
    done = run("rules", "check", file, "--on", source, "--explain", "experts", "--explain", "norm")
    assert (done.code, done.stderr) == (0, "")
    assert "holds" in done.stdout
    assert "stack(over=e, dim=0)" in done.stdout
    document = run("rules", "check", file, "--on", source, "--json").json
    assert (document["schema"], document["verdict"]) == ("ckptkit.rules/1", "holds")
    assert {row["name"] for row in document["tensors"]} >= {"m.0.q", "head"}

    wrong = run("rules", "check", "vit-timm-hf", "--on", source, "--json")
    assert wrong.code == 1
    assert len(wrong.json["findings"]) > 5
    assert run("rules", "check", "no-such", "--on", source).code == 2
    assert run("rules", "check", file, "--on", source, "--explain", "nothing").code == 2
    assert run("rules", "check", file, "--on", source, "--target", source).code == 1

    failing = run("rules", "check", "vit-timm-hf", "--on", source, "--explain", "norm")
    assert (failing.code, failing.stderr) == (1, "")
    assert "fails" in failing.stdout
    for options in (["--reverse"], ["--rules", file, "--approximate"]):
        misused = run("convert", source, tmp_path / "z.pt", *options)
        assert (misused.code, "error[usage]" in misused.stderr) == (2, True)

    failed = run("convert", source, tmp_path / "z.pt", "--rules", "vit-timm-hf")
    assert failed.code == 2
    assert failed.stderr.count("error[rule-") > 5
    assert not (tmp_path / "z.pt").exists()

    listed = run("rules", "list").stdout
    assert all(name in listed for name in ("llama-meta-hf", "weight-norm-fold"))
    assert run("rules", "list", "--json").json["presets"]["vit-timm-hf"] == "ViT, timm → Hugging Face"
    assert run("rules", "show", "vit-timm-hf").stdout.startswith("ckptkit-rules: 1\nabout: ViT")
    assert run("rules", "show", file).stdout.startswith("ckptkit-rules: 1\n")

    back = run("rules", "reverse", file)
    assert (back.code, back.stdout) == (2, "")
    assert "error[rule-approximate]" in back.stderr
    back = run("rules", "reverse", file, "--approximate")
    assert (back.code, "add" in back.stdout, "unstack" in back.stdout) == (0, False, True)
    back = run("rules", "reverse", "vit-timm-hf")
    (tmp_path / "back.yaml").write_text(back.stdout)
    assert ck.Rules.load(tmp_path / "back.yaml").reversed().apply  # reads as a rule file


def test_auto_takes_the_one_that_fits(tmp_path: Path, run: Callable[..., Result]) -> None:
    vit = {f"blocks.0.{name}": np.zeros(shape, "f4") for name, shape in VIT.items()}
    vit |= {"cls_token": np.zeros((1, 1, 4), "f4"), "pos_embed": np.zeros((1, 5, 4), "f4")}
    vit |= {"patch_embed.proj.weight": np.zeros((4, 3, 2, 2), "f4"), "norm.weight": np.zeros(4, "f4")}
    save_file(vit, tmp_path / "vit.safetensors")
    found = run("convert", tmp_path / "vit.safetensors", tmp_path / "out.pt", "--rules", "auto")
    assert found.code == 2
    assert "--rules vit-timm-hf" in found.stderr
    assert "--rules vit-timm-torchvision" in found.stderr
    target = tmp_path / "tv.safetensors"
    rules = ck.Rules.load("vit-timm-torchvision")
    ck.convert(tmp_path / "vit.safetensors", target, rules=[rules])
    proved = run("rules", "check", "auto", "--on", tmp_path / "vit.safetensors", "--target", target)
    assert (proved.code, "vit-timm-torchvision" in proved.stdout) == (0, True)
    save_file({"unheard.of": np.zeros(2, "f4")}, tmp_path / "x.safetensors")
    lost = run("convert", tmp_path / "x.safetensors", tmp_path / "y.pt", "--rules", "auto")
    assert "error[rules-unknown]" in lost.stderr


VIT = {"attn.qkv.weight": (12, 4), "attn.proj.weight": (4, 4), "norm1.weight": (4,), "norm2.weight": (4,)}
VIT |= {"mlp.fc1.weight": (8, 4), "mlp.fc2.weight": (4, 8)}


def test_onnx_edges_follow(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    rng = np.random.default_rng(0)
    weights = {"l.0.w": rng.normal(size=(3, 3)).astype("f4"), "l.1.w": rng.normal(size=(3, 3)).astype("f4")}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "l.0.w"], ["h"]),
        onnx.helper.make_node("MatMul", ["h", "l.1.w"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, [1, 3])], [value("y", 1, [1, 3])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    rules = ck.Rules.of([{"from": "l.{i}.w", "to": "l.{1-i}.w"}])  # an exchange
    ck.convert(tmp_path / "a.onnx", tmp_path / "b.onnx", rules=[rules])
    onnx.checker.check_model(str(tmp_path / "b.onnx"))
    x = rng.normal(size=(1, 3)).astype("f4")
    a, b = (
        runtime.InferenceSession(str(tmp_path / name)).run(None, {"x": x})[0] for name in ("a.onnx", "b.onnx")
    )
    assert np.array_equal(a, b)
    assert np.array_equal(ck.read(tmp_path / "b.onnx")["l.1.w"].numpy(), weights["l.0.w"])
