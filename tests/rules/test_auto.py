"""Rules found by names, and by what the result is to be like; what that settles when rules are undone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptkit as ck
from ckptkit.rules.recognise import candidates
from ckptkit.rules.ruleset import Rules, presets
from tests.support import Result

BLOCK = {"attn.qkv.weight": (12, 4), "attn.proj.weight": (4, 4), "norm1.weight": (4,), "norm2.weight": (4,)}
BLOCK |= {"mlp.fc1.weight": (8, 4), "mlp.fc2.weight": (4, 8)}
VIT: dict[str, tuple[int, ...]] = {
    f"blocks.{i}.{name}": shape for i in (0, 1) for name, shape in BLOCK.items()
}
VIT |= {
    "cls_token": (1, 1, 4),
    "pos_embed": (1, 5, 4),
    "patch_embed.proj.weight": (4, 3, 2, 2),
    "norm.weight": (4,),
}


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return made(tmp_path / "vit.safetensors", VIT)


def made(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    rng = np.random.default_rng(0)
    save_file({name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}, path)
    return path


def refusal(make: Callable[..., Any], *args: Any, **options: Any) -> ck.CkptError:
    with pytest.raises(ck.CkptError) as caught:
        make(*args, **options)
    return caught.value


@pytest.mark.parametrize("rules", ["vit-timm-hf", "vit-timm-torchvision"])
def test_what_the_result_is_like_decides(vit: Path, tmp_path: Path, rules: str) -> None:
    model = tmp_path / "like.safetensors"
    ck.convert(vit, model, rules=[rules])
    found = ck.plan(vit, tmp_path / "x.pt", rules=["auto"], like=model)
    assert {step.rule.split(":")[0] for step in found.trace.values()} == {rules}
    assert ck.diff(vit, model, rules=["auto"]).equal
    assert ck.diff(model, vit, rules=["auto"]).equal  # backwards is a way as well
    wrapped = tmp_path / "wrapped.safetensors"
    ck.convert(vit, wrapped, rules=["add:module."])
    assert ck.diff(wrapped, model, rules=["auto"]).equal  # and so is taking off a wrapper first
    assert ck.diff(model, model, rules=["auto"]).equal  # nothing is to be done


def test_without_it_the_candidates_are_listed(vit: Path, tmp_path: Path) -> None:
    error = refusal(ck.plan, vit, tmp_path / "x.pt", rules=["auto"])
    assert error.code == "rules-ambiguous"
    assert (error.hint or "").split("\n") == ["--rules vit-timm-hf", "--rules vit-timm-torchvision"]
    assert refusal(ck.plan, vit, tmp_path / "x.pt", rules=["auto"], reverse=True).code == "usage"


def test_near_misses_are_told_with_what_they_lack(tmp_path: Path) -> None:
    path = made(tmp_path / "x.safetensors", VIT | {"head_dist.weight": (3, 4)})
    error = refusal(ck.plan, path, tmp_path / "y.pt", rules=["auto"])
    assert error.code == "rules-unknown"
    assert "vit-timm-hf: leaves 1 tensor, such as head_dist.weight" in (error.hint or "")
    other = made(tmp_path / "other.safetensors", {"unheard.of": (2,)})
    assert "ckptkit rules list" in (refusal(ck.plan, other, tmp_path / "y.pt", rules=["auto"]).hint or "")


def test_a_diff_takes_what_leads_nearest(vit: Path, tmp_path: Path) -> None:
    """A model with another head is no exact target, and still there is only one scheme that is meant."""
    model = tmp_path / "like.safetensors"
    ck.convert(vit, model, rules=["vit-timm-torchvision"])
    arrays = load_file(model)
    save_file({**arrays, "heads.head.bias": np.zeros(3, "f4")}, model)
    found = ck.diff(vit, model, rules=["auto"])
    assert [entry.name for entry in found.entries if entry.status != "equal"] == ["heads.head.bias"]
    error = refusal(ck.plan, vit, tmp_path / "y.pt", rules=["auto"], like=model)
    assert (error.code, error.where) == ("target-missing", "heads.head.bias")


def test_a_result_unlike_what_it_should_be_is_refused(vit: Path, tmp_path: Path) -> None:
    half = made(tmp_path / "half.safetensors", {name: (2, *shape[1:]) for name, shape in VIT.items()})
    assert refusal(ck.plan, vit, tmp_path / "y.pt", like=half).code == "target-shape"
    ck.plan(vit, tmp_path / "y.pt", like=vit, dtype="bfloat16")
    same = made(tmp_path / "same.safetensors", VIT)
    assert refusal(ck.plan, vit, same, like=same).code == "target-is-source"


def test_part_of_a_conversion_is_not_taken_for_it(vit: Path, tmp_path: Path) -> None:
    """Presets that keep other names are recognised where they rename, or where a target confirms them."""
    other = made(tmp_path / "x.safetensors", {f"encoder.{name}": shape for name, shape in VIT.items()})
    assert refusal(ck.plan, other, tmp_path / "y.pt", rules=["auto"]).code == "rules-unknown"
    split = tmp_path / "split.safetensors"
    ck.convert(other, split, rules=["attention-qkv-split"])
    assert ck.diff(other, split, rules=["auto"]).equal
    old = made(
        tmp_path / "old.safetensors", {"layer.0.LayerNorm.gamma": (2,), "layer.0.dense.weight": (2, 2)}
    )
    assert set(ck.plan(old, tmp_path / "y.pt", rules=["auto"]).graph) == {
        "layer.0.LayerNorm.weight",
        "layer.0.dense.weight",
    }


OPEN = """ckptkit-rules: 1
rules:
- {from: ["l.{i}.q", "l.{i}.kv"], to: "l.{i}.qkv", concat: {dim: 0}}
- {drop: rope}
"""
OPENED = {"l.0.q": (4, 2), "l.0.kv": (2, 2), "l.1.q": (3, 2), "l.1.kv": (3, 2), "rope": (2,)}


def test_sizes_are_read_off_what_the_result_is_like(tmp_path: Path, run: Callable[..., Result]) -> None:
    rules = tmp_path / "open.yaml"
    rules.write_text(OPEN)
    source, joined, back = (
        made(tmp_path / "s.safetensors", OPENED),
        tmp_path / "j.safetensors",
        tmp_path / "b.pt",
    )
    ck.convert(source, joined, rules=[str(rules)])
    assert refusal(ck.plan, joined, back, rules=[str(rules)], reverse=True).code == "rule-lossy"
    error = refusal(ck.plan, joined, back, rules=[str(rules)], reverse=True, like=source)
    assert (error.code, error.where) == ("target-missing", "rope")  # what was dropped is lost

    plain = made(
        tmp_path / "p.safetensors", {name: shape for name, shape in OPENED.items() if name != "rope"}
    )
    (tmp_path / "loose.yaml").write_text(OPEN.replace("rope}", "rope, optional: true}"))
    done = run("convert", joined, back, "--rules", tmp_path / "loose.yaml", "--reverse", "--like", plain)
    assert (done.code, done.stderr) == (0, "")
    arrays = load_file(source)
    assert all(np.array_equal(tensor.numpy(), arrays[name]) for name, tensor in ck.read(back).items())
    assert ck.diff(joined, back, rules=[str(tmp_path / "loose.yaml")], reverse=True).equal
    assert (
        run("rules", "check", tmp_path / "loose.yaml", "--reverse", "--on", joined, "--target", plain).code
        == 0
    )

    assert run("rules", "reverse", rules).code == 2
    written = run("rules", "reverse", rules, "--on", source)
    assert (written.code, written.stderr) == (0, "")
    (tmp_path / "back.yaml").write_text(written.stdout)
    ck.convert(joined, tmp_path / "again.safetensors", rules=[str(tmp_path / "back.yaml")])
    assert {name: a.tobytes() for name, a in load_file(tmp_path / "again.safetensors").items()} == {
        name: array.tobytes() for name, array in arrays.items() if name != "rope"
    }
    assert run("rules", "reverse", rules, "--on", joined).code == 2


def test_values_of_several_files_are_for_all_that_declare_them(tmp_path: Path) -> None:
    one = Rules.of([{"fill": "f", "shape": ["n"]}], let={"n": []}, keep_others=True)
    two = Rules.of([{"fill": "g", "shape": ["n"]}], let={"n": []}, keep_others=True)
    source = made(tmp_path / "s.safetensors", {"a": (2,)})
    graph = ck.plan(source, tmp_path / "t.pt", rules=[one, two], let={"n": 3}).graph
    assert (graph["f"].shape, graph["g"].shape) == ((3,), (3,))


def test_no_preset_fits_everything() -> None:
    """A preset whose rules take any name would be recognised in any checkpoint."""
    from tests.rules.support import names

    graph = names("a.b.weight", "a.1.weight", "c")
    assert [candidate.label for candidate in candidates(graph, {})] == []
    assert len(presets()) > 20


def test_near_misses_stand_on_lines_of_their_own_whatever_names_hold(
    vit: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    arrays = load_file(vit) | {"more\n--rules mine": np.zeros(1, "f4")}
    save_file(arrays, tmp_path / "more.safetensors")
    failed = run("rules", "check", "auto", "--on", tmp_path / "more.safetensors")
    hints = failed.stderr.split("hint:")[1].splitlines()
    assert len([line for line in hints if line.strip()]) > 1
    assert all(line.strip().startswith("--rules ") and "mine:" not in line for line in hints)
