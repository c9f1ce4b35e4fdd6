"""convert --fit: what fits is carried over bit for bit, the rest treated as told, and all of it is said."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptkit as ck
from ckptkit.core.errors import CkptError
from ckptkit.match.fit.fitting import Fitting
from ckptkit.targets import pretrained
from ckptkit.targets.contract import Contract
from ckptkit.targets.instantiate import Manifest
from tests.graphs import graph
from tests.support import Result

torch = pytest.importorskip("torch", reason="needs the torch extra")
nn = torch.nn

Run = Callable[..., Result]


class Block(nn.Module):
    def __init__(self, wide: int, stride: int) -> None:
        super().__init__()
        out = wide * stride
        self.conv1, self.bn1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet18(nn.Module):
    """torchvision's names, a sixteenth of its width."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
        for number, (wide, stride) in enumerate([(4, 1), (4, 2), (8, 2), (16, 2)], 1):
            self.add_module(f"layer{number}", nn.Sequential(Block(wide, stride), Block(wide * stride, 1)))
        self.fc = nn.Linear(32, classes)


class Deep(nn.Module):
    """A ResNet-18 in a module of its own, as trainers wrap it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet18(1)
        self.backbone.fc = nn.Identity()
        self.head = nn.Linear(32, 7)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def save(model: Any, path: Path, prefix: str = "") -> Path:
    torch.save({prefix + name: value for name, value in model.state_dict().items()}, path)
    return path


def carried(fit: Fitting, source: Any, path: Path, new: Callable[[str], str] = str) -> dict[str, Any]:
    """What was written, after comparing bit for bit what is said to have been carried over."""
    written = torch.load(path)
    for item in fit.items:
        if item.what in ("carried", "kept"):
            assert item.name == new(item.source)
            assert torch.equal(written[item.name], source[item.source]), item.name
            assert written[item.name].dtype == source[item.source].dtype
    return written


def fitted(src: Path, dst: Path, **options: Any) -> Fitting:
    plan = ck.plan(src, dst, **options)
    ck.write(plan, overwrite=True)
    assert plan.fit is not None
    return plan.fit


def test_another_number_of_classes(tmp_path: Path) -> None:
    base, model = ResNet18(), ResNet18(10)
    src, dst = save(base, tmp_path / "base.pt"), tmp_path / "out.pt"
    contract = Contract.from_graph(ck.read(save(model, tmp_path / "model.pt")))
    contract.save(tmp_path / "model.ckpt.yaml")
    with pytest.raises(CkptError) as caught:
        ck.plan(src, dst, fit=tmp_path / "model.ckpt.yaml")
    assert caught.value.code == "fit-undecided"
    assert "fc.weight 1000×32 → 10×32" in caught.value.message

    fit = fitted(src, dst, fit=contract, mismatched="zeros")
    written = carried(fit, base.state_dict(), dst)
    assert fit.names("zeros") == ("fc.weight", "fc.bias")
    assert len(fit.names("carried")) == len(written) - 2
    assert not written["fc.weight"].any()
    model.load_state_dict(written, strict=True)
    assert ck.check(dst, contract).fits

    fit = fitted(src, dst, fit=contract, mismatched="drop")
    missing = model.load_state_dict(carried(fit, base.state_dict(), dst), strict=False)
    assert (tuple(missing.missing_keys), missing.unexpected_keys) == (fit.names("missing"), [])
    assert fit.names("missing") == ("fc.weight", "fc.bias")

    fit = fitted(src, dst, fit=contract, mismatched="keep")
    written = carried(fit, base.state_dict(), dst)
    assert fit.names("kept") == ("fc.weight", "fc.bias")
    assert written.keys() == base.state_dict().keys()


@pytest.mark.parametrize("prefix", ["", "module.", "model.module.", "backbone.", "state.encoder."])
def test_prefixes_are_brought_over(tmp_path: Path, prefix: str) -> None:
    base, model = ResNet18(), Deep()
    src, dst = save(base, tmp_path / "base.pt", prefix), tmp_path / "out.pt"
    save(model, tmp_path / "model.pt")
    source = {prefix + name: value for name, value in base.state_dict().items()}
    fit = fitted(src, dst, fit=tmp_path / "model.pt", mismatched="drop")
    written = carried(fit, source, dst, lambda name: "backbone." + name.removeprefix(prefix))
    missing = model.load_state_dict(written, strict=False)
    assert missing.missing_keys == list(fit.names("missing")) == ["head.weight", "head.bias"]
    assert set(fit.dropped) == {f"{prefix}fc.weight", f"{prefix}fc.bias"}


def test_a_nested_trainer_checkpoint_on_both_sides(tmp_path: Path) -> None:
    base, model = ResNet18(), ResNet18(10)
    for path, one in (("base.pt", base), ("model.pt", model)):
        state = {f"module.{name}": value for name, value in one.state_dict().items()}
        optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}
        torch.save({"epoch": 3, "state_dict": state, "optimizer": optimizer}, tmp_path / path)
    plan = ck.plan(tmp_path / "base.pt", tmp_path / "out.pt", fit=tmp_path / "model.pt", mismatched="drop")
    assert plan.fit is not None
    assert plan.fit.names("missing") == ("module.fc.weight", "module.fc.bias")
    assert not plan.fit.dropped


def test_parts_that_fit_equally_well_are_not_chosen_between(tmp_path: Path) -> None:
    state = ResNet18().state_dict()
    both = {f"{side}.{name}": value for side in ("encoder_q", "encoder_k") for name, value in state.items()}
    torch.save(both, tmp_path / "moco.pt")
    target = ck.read(save(ResNet18(), tmp_path / "model.pt"))
    contract = Contract.from_graph(target)
    with pytest.raises(CkptError) as caught:
        ck.plan(tmp_path / "moco.pt", tmp_path / "out.pt", fit=contract)
    assert caught.value.code == "fit-ambiguous"
    assert caught.value.hint == "--rules strip:encoder_q. settles it"
    rules = {"rules": ["strip:encoder_k."]}
    fit = fitted(tmp_path / "moco.pt", tmp_path / "out.pt", fit=contract, **rules)
    assert len(fit.names("carried")) == len(state)
    written = torch.load(tmp_path / "out.pt")
    assert all(torch.equal(written[name], both[f"encoder_k.{name}"]) for name in state)


# Models of transformers.

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the hf extra")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of a config.json are made in this process, which has loaded the libraries already."""

    def make(kind: str, config: Any, where: str, time_limit: float) -> Manifest:
        return pretrained.make(config, where, lambda: None)

    monkeypatch.setattr("ckptkit.targets.made.manifest", make)


@pytest.mark.usefixtures("here")
def test_bert_with_other_labels(tmp_path: Path, transformers: Any) -> None:
    def bert(labels: int) -> Any:
        config = transformers.BertConfig(**SMALL, vocab_size=20, num_labels=labels)
        return transformers.BertForSequenceClassification(config)

    base, model = bert(2), bert(5)
    base.save_pretrained(tmp_path / "base")
    model.config.save_pretrained(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text("utf-8"))
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "new" / "config.json").write_text(json.dumps(config), "utf-8")
    fit = fitted(tmp_path / "base", tmp_path / "out", fit=tmp_path / "new", mismatched="zeros")
    assert fit.names("zeros") == ("classifier.weight", "classifier.bias")
    loaded, info = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.num_labels == 5  # the folder has the new config.json
    old, new = base.state_dict(), loaded.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in fit.names("carried"))
    assert not new["classifier.weight"].any()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("way", ["zeros", "drop"])
def test_gpt2_with_more_words(tmp_path: Path, transformers: Any, way: str) -> None:
    def gpt2(vocab: int) -> Any:
        sizes = {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, vocab_size=vocab))

    base, model = gpt2(50), gpt2(53)
    base.save_pretrained(tmp_path / "base")  # lm_head is tied and not saved
    model.save_pretrained(tmp_path / "new")
    fit = fitted(tmp_path / "base", tmp_path / "out.pt", fit=tmp_path / "new", mismatched=way)
    assert fit.names("extended") == ("transformer.wte.weight",)
    assert fit.names("tied") == ("lm_head.weight",)
    written = carried(fit, base.state_dict(), tmp_path / "out.pt")
    rows = written["transformer.wte.weight"]
    assert torch.equal(rows[:50], base.transformer.wte.weight)
    assert not rows[50:].any()
    assert written["lm_head.weight"].data_ptr() == rows.data_ptr()
    model.load_state_dict(written, strict=True)
    # Both names saved, and tied: they grow together.
    torch.save(base.state_dict(), tmp_path / "both.pt")
    fit = fitted(tmp_path / "both.pt", tmp_path / "out.pt", fit=tmp_path / "new", mismatched=way)
    written = torch.load(tmp_path / "out.pt")
    assert written["lm_head.weight"].data_ptr() == written["transformer.wte.weight"].data_ptr()
    # In safetensors a tied tensor is written once; its own library ties it again.
    fitted(tmp_path / "base", tmp_path / "out.safetensors", fit=tmp_path / "new", mismatched=way)
    from safetensors.torch import load_model

    load_model(model, tmp_path / "out.safetensors", strict=True)
    assert torch.equal(model.transformer.wte.weight, rows)


def test_vit_with_other_classes_and_image_size(tmp_path: Path, transformers: Any) -> None:
    def vit(classes: int, size: int) -> Any:
        config = transformers.ViTConfig(**SMALL, num_labels=classes, image_size=size, patch_size=4)
        return transformers.ViTForImageClassification(config)

    base, model, large = vit(10, 8), vit(3, 8), vit(10, 12)
    for name, one in (("base", base), ("model", model), ("large", large)):
        save(one, tmp_path / f"{name}.pt")
    fit = fitted(tmp_path / "base.pt", tmp_path / "out.pt", fit=tmp_path / "model.pt", mismatched="zeros")
    assert set(fit.names("zeros")) == {"classifier.weight", "classifier.bias"}
    model.load_state_dict(carried(fit, base.state_dict(), tmp_path / "out.pt"), strict=True)
    # Position embeddings are resized by a rule that says so, and never otherwise.
    positions = next(name for name in base.state_dict() if "position_embeddings" in name)
    fit = fitted(tmp_path / "base.pt", tmp_path / "out.pt", fit=tmp_path / "large.pt", mismatched="drop")
    assert fit.names("missing") == (positions,)
    grid = "{resize_grid: {dim: 1, skip: 1, from: [2, 2], to: [3, 3]}}"
    rule = f"{{from: {positions}, to: {positions}, ops: [{grid}]}}"
    fit = fitted(tmp_path / "base.pt", tmp_path / "out.pt", fit=tmp_path / "large.pt", rules=[rule])
    large.load_state_dict(torch.load(tmp_path / "out.pt"), strict=True)
    assert len(fit.names("carried")) == len(base.state_dict())


def test_a_module_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    text = "from torch import nn\ndef build(): return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))\n"
    (tmp_path / "nets_to_fit.py").write_text(text, "utf-8")
    save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 9)).half(), tmp_path / "base.pt")
    line = ("convert", "base.pt", "out.pt", "--fit", "nets_to_fit:build", "--mismatched", "zeros")
    assert "error[code-refused]" in run(*line).stderr
    done = run(*line, "--allow-code", "--json")
    assert done.code == 0
    assert {row["name"]: row["what"] for row in done.json["fit"]["tensors"]} == {
        "0.weight": "carried", "0.bias": "carried", "1.weight": "zeros", "1.bias": "zeros",
    }  # fmt: skip
    assert {value.dtype for value in torch.load("out.pt").values()} == {torch.float16}  # as its neighbours
    assert "nets_to_fit" not in sys.modules


# The rules, and what is refused.


def test_check_offers_a_start_for_training(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(ResNet18(), tmp_path / "base.pt", "module.")
    contract = Contract.from_graph(ck.read(save(ResNet18(10), tmp_path / "model.pt")))
    contract.save("model.ckpt.yaml")
    report = ck.check("base.pt", "model.ckpt.yaml")
    (line,) = [line for line in report.fixes if "--fit" in line]
    assert run(*shlex.split(line)[1:]).code == 0
    assert ck.check("base-fitted.safetensors", "model.ckpt.yaml").fits
    save(Block(4, 1), tmp_path / "other.pt")  # of which nothing can be made
    assert not any("--fit" in line for line in ck.check("other.pt", "model.ckpt.yaml").fixes)


def test_the_rules_do_the_same(tmp_path: Path, run: Run) -> None:
    base = save(ResNet18(), tmp_path / "base.pt", "module.")
    model = save(Deep(), tmp_path / "model.pt")
    line = ("convert", base, tmp_path / "out.pt", "--fit", model, "--mismatched", "zeros")
    done = run(*line, "--dry-run")
    assert done.code == 0
    assert "120 of 122 tensors carried over as they are · 2 dropped" in done.stdout
    assert "head.weight" in done.stdout
    text = done.stdout[done.stdout.index("ckptkit-rules: 1") :]
    assert len(text.splitlines()) < 15
    (tmp_path / "fit.yaml").write_text(text, "utf-8")
    assert run(*line).code == 0
    assert run("convert", base, tmp_path / "same.pt", "--rules", tmp_path / "fit.yaml").code == 0
    assert (tmp_path / "same.pt").read_bytes() == (tmp_path / "out.pt").read_bytes()
    planned = run(*line, "-n", "-y", "--json").json["fit"]
    assert planned["rules"] == text
    receipt = tmp_path / "receipt.json"
    assert run(*line, "-y", "--receipt", receipt).code == 0
    assert json.loads(receipt.read_text("utf-8"))["fit"] == planned


Shapes = dict[str, tuple[int, ...]]


def plan_of(shapes: Shapes, target: Any, tmp_path: Path, **options: Any) -> Fitting:
    from safetensors.torch import save_file

    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "x.safetensors")
    if isinstance(target, str):
        target = Contract.parse("ckptkit-contract: 1\n" + target)
    else:
        target = Contract.from_graph(graph(target))
    fit = ck.plan(tmp_path / "x.safetensors", tmp_path / "y.safetensors", fit=target, **options).fit
    assert fit is not None
    return fit


def test_a_grown_vocabulary_by_its_name_in_the_contract(tmp_path: Path) -> None:
    contract = "dimensions: {vocab_size: 12}\ntensors: {a.table: 'float32 [vocab_size, 4]', b.w: 'any [3]'}\n"
    fit = plan_of({"a.table": (9, 4), "b.w": (3,)}, contract, tmp_path, mismatched="drop")
    assert fit.names("extended") == ("a.table",)
    # One that has shrunk would lose words: it is treated as any other.
    fit = plan_of({"a.table": (19, 4), "b.w": (3,)}, contract, tmp_path, mismatched="drop")
    assert fit.names("missing") == ("a.table",)
    # What is no vocabulary has rows that mean something else.
    fit = plan_of({"fc.w": (3, 4), "b": (1,)}, {"fc.w": (5, 4), "b": (1,)}, tmp_path, mismatched="zeros")
    assert fit.names("zeros") == ("fc.w",)


@pytest.mark.parametrize(
    ("shapes", "target", "mismatched", "code"),
    [
        ({"a": (2,), "b": (3,)}, "tensors: {a: 'any [2]', b: 'any [4, ?]'}", "zeros", "fit-open"),
        ({"a": (2,)}, "tensors: {a: 'any [2]', b: any}", "zeros", "fit-open"),
        ({"a": (2,)}, "dimensions: {n: any}\ntensors: {a: 'any [2]', b: 'any [n]'}", "zeros", "fit-open"),
        ({"a": (2,)}, {"a": (2,), "b": (3,)}, None, "fit-undecided"),
        ({"a": (2,)}, {"x": (2,), "y": (3,)}, "zeros", "fit-nothing"),
        ({"a": (3,)}, {"a": (2,)}, "zeros", "fit-nothing"),
        ({"a": (3,), "n": ()}, {"a": (2,), "n": ()}, "zeros", "fit-nothing"),
    ],
)
def test_what_is_refused(
    shapes: Shapes, target: Any, mismatched: str | None, code: str, tmp_path: Path
) -> None:
    with pytest.raises(CkptError) as caught:
        plan_of(shapes, target, tmp_path, mismatched=mismatched)
    assert caught.value.code == code
    assert caught.value.hint


def test_what_the_contract_leaves_free_stays(tmp_path: Path) -> None:
    contract = "tensors: {a: 'any [2]'}\noptional: {o: any}\nunlisted: allow\n"
    fit = plan_of({"a": (2,), "more": (4,)}, contract, tmp_path)
    assert (fit.dropped, [item.name for item in fit.items]) == ((), ["a"])
    assert fit.rules.text().endswith("rules: []\n")
    dropping = plan_of({"a": (2,), "more": (4,)}, "tensors: {a: 'any [2]'}\n", tmp_path)
    assert dropping.dropped == ("more",)


def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    src = save(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(3, 3)}), tmp_path / "x.pt")
    model = ck.read(save(nn.ModuleDict({"a": nn.Linear(2, 2), "c": Block(2, 1)}), tmp_path / "y.pt"))
    plan = ck.plan(src, tmp_path / "z.pt", fit=model, mismatched="drop")
    assert "fit-little" in {note.code for note in plan.notes}


def test_names_with_braces_and_tied_targets(tmp_path: Path) -> None:
    fit = plan_of(
        {"m.{x}.w": (2,), "m.y": (3,)},
        "tensors: {'{{x}}.w': 'any [2]', y: 'any [3]', z: 'any [3]'}\nties: [[z, y]]\n",
        tmp_path,
        mismatched="drop",
    )
    assert {item.name: item.what for item in fit.items} == {"{x}.w": "carried", "y": "carried", "z": "tied"}
    ck.convert(tmp_path / "x.safetensors", tmp_path / "y.pt", rules=[fit.rules])
    written = torch.load(tmp_path / "y.pt")
    assert written["z"].data_ptr() == written["y"].data_ptr()
    contract = "tensors: {a: 'any [3]', y: 'any [3]', z: 'any [3]'}\nties: [[z, y]]\n"
    fit = plan_of({"a": (3,)}, contract, tmp_path, mismatched="zeros")  # neither is there
    ck.convert(tmp_path / "x.safetensors", tmp_path / "y.pt", rules=[fit.rules], overwrite=True)
    written = torch.load(tmp_path / "y.pt")
    assert written["z"].data_ptr() == written["y"].data_ptr()


def test_options_that_do_not_go_together(tmp_path: Path, run: Run, fixtures_dir: Path) -> None:
    llama = fixtures_dir / "good" / "llama"
    done = run("convert", llama, tmp_path / "x.pt", "--mismatched", "drop")
    assert (done.code, "--fit" in done.stderr) == (2, True)
    model = save(nn.Linear(2, 2), tmp_path / "model.pt")
    done = run("convert", model, model, "--fit", model, "-y")
    assert "error[target-is-source]" in done.stderr
    other = save(nn.Linear(2, 2), tmp_path / "other.pt")
    done = run("convert", other, model, "--fit", model, "-y")
    assert "error[target-is-source]" in done.stderr
    (tmp_path / "c.ckpt.yaml").write_text("ckptkit-contract: 1\ntensors: {weight: any, bias: any}\n", "utf-8")
    done = run(
        "convert", other, tmp_path / "c.ckpt.yaml", "--to", "pytorch", "--fit", tmp_path / "c.ckpt.yaml", "-y"
    )
    assert "error[target-is-source]" in done.stderr


def test_a_folder_with_a_stale_configuration_is_told(tmp_path: Path, fixtures_dir: Path, run: Run) -> None:
    llama = fixtures_dir / "good" / "llama"
    shapes = {name: tensor.shape for name, tensor in ck.read(llama).items()}
    more = Contract.from_graph(
        graph(shapes | {"lm_head.weight": (99, 32), "model.embed_tokens.weight": (99, 32)})
    )
    more.save(tmp_path / "more.ckpt.yaml")
    line = ("convert", llama, tmp_path / "out", "--fit", tmp_path / "more.ckpt.yaml")
    done = run(*line, "--mismatched", "zeros", "--json")
    assert done.code == 0
    plan = ck.plan(llama, tmp_path / "new", fit=more, mismatched="zeros")
    assert "config-stale" in {note.code for note in plan.notes}
    assert plan.fit is not None
    assert set(plan.fit.names("extended")) == {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_shallower_network_is_a_subset_of_a_deeper_one(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "cifar_resnet"
    if not folder.is_dir():
        pytest.skip("needs cifar_resnet")
    deep, shallow = (next(folder.rglob(f"*resnet{n}*.th"), None) for n in (32, 20))
    if deep is None or shallow is None:
        pytest.skip("needs resnet20 and resnet32")
    plan = ck.plan(deep, tmp_path / "out.pt", fit=shallow)
    assert plan.fit is not None
    assert len(plan.fit.names("carried")) == len(ck.read(shallow)) == len(plan.graph)
    assert len(plan.fit.dropped) == len(ck.read(deep)) - len(plan.graph)
    ck.write(plan)
    before, after = ck.read(deep), ck.read(tmp_path / "out.pt")
    assert all(
        after[name].tobytes() == before[f"module.{name.removeprefix('module.')}"].tobytes() for name in after
    )
