"""Exporting a module of the user: names kept or recorded, outputs proved, later transplants possible."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptkit as ck
from tests.support import Result

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("onnxscript", reason="the exporter needs it")
pytest.importorskip("onnxruntime", reason="needs the onnx extra")

Run = Callable[..., Result]

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.Linear(16, 6)

    def forward(self, image):
        return self.up(self.norm(self.conv(image)).flatten(2).transpose(1, 2))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids, mask):
        return {"logits": self.head(self.table(ids) * mask[..., None])}

def broken():
    raise RuntimeError("on purpose")
"""


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[Path, str]:
    """The current folder, and the name of a module in it that no other test has."""
    name = f"nets_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path, name


def save(path: Path, spec: str, seed: int) -> None:
    from ckptkit.targets.factory import make_module

    torch.manual_seed(seed)
    module = make_module(spec)
    for name, tensor in module.state_dict().items():
        if tensor.dtype.is_floating_point:
            tensor.uniform_(0.2, 2) if name.endswith("var") else tensor.normal_()
    torch.save(module.state_dict(), path)


def test_names_are_kept_or_recorded(place: tuple[Path, str], run: Run) -> None:
    folder, name = place
    save(folder / "base.pt", f"{name}:Net", 0)
    save(folder / "tuned.pt", f"{name}:Net", 1)
    line = (
        "--module",
        f"{name}:Net",
        "--input",
        "image:float32[1,3,8,8]",
        "--dynamic",
        "image.0=batch",
        "--prove",
    )
    done = run("export", "base.pt", "base.onnx", *line, "--json")
    assert done.code == 0, done.stderr
    told = done.json
    assert told["unused"] == []
    assert told["proved"] is True
    model = onnx.load(folder / "base.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    weights, graph = ck.read("base.pt"), ck.read("base.onnx")
    for weight in told["named"]:
        assert graph[weight].tobytes() == weights[weight].tobytes()
    (record,) = [json.loads(p.value) for p in model.metadata_props if p.key == "ckptkit_weights"]
    assert {key: row["from"] for key, row in record.items()} == told["recorded"]
    assert {n for names in told["recorded"].values() for n in names} | set(told["named"]) == {
        weight for weight in weights if not weight.endswith("num_batches_tracked")
    }
    # The graph takes other weights, and gives what a fresh export of these gives.
    assert run("export", "tuned.pt", "fresh.onnx", *line, "--onnx-data", "external").code == 0
    assert (folder / "fresh.onnx.data").exists()
    assert (
        run("convert", "tuned.pt", "new.onnx", "--into", "base.onnx", "--exported-from", "base.pt").code == 0
    )
    assert ck.prove("new.onnx", "fresh.onnx").equal
    assert not ck.prove("base.onnx", "fresh.onnx").equal


def test_inputs_by_name(place: tuple[Path, str], run: Run) -> None:
    folder, name = place
    save(folder / "words.pt", f"{name}:Words", 0)
    inputs = ("--input", "mask:float32[1,5]", "--input", "ids:int64[1,5]")
    free = [part for place in ("ids", "mask") for part in ("--dynamic", f"{place}.1=length")]
    done = run("export", "words.pt", "words.onnx", "--module", f"{name}:Words", *inputs, *free, "--prove")
    assert done.code == 0, done.stderr
    assert f"same outputs as {name}:Words" in done.stdout
    assert {v.name: v.shape for v in ck.read("words.onnx").inputs} == {
        "ids": (1, "length"),
        "mask": (1, "length"),
    }


def test_what_cannot_be_exported(place: tuple[Path, str], run: Run) -> None:
    folder, name = place
    save(folder / "words.pt", f"{name}:Words", 0)
    (folder / "there.onnx").write_bytes(b"")

    def error(
        *line: str, target: str = "x.onnx", module: str = "Words", shape: str = "ids:int64[1,5]"
    ) -> str:
        done = run("export", "words.pt", target, "--module", f"{name}:{module}", "--input", shape, *line)
        assert done.code == 2
        return done.stderr.split("[")[1].split("]")[0]

    assert error() == "export-failed"  # forward needs a mask too
    assert error(module="Net") == "module-misfit"
    assert error(module="broken") == "module-invalid"
    assert error(target="there.onnx") == "exists"
    assert error("--dynamic", "ids.2=n") == "usage"
    assert error(shape="ids") == "usage"
    assert error(shape="ids:int63[1]") == "dtype-unknown"
    assert sorted(p.name for p in folder.iterdir() if p.suffix in (".onnx", ".tmp", ".data")) == [
        "there.onnx"
    ]


@pytest.mark.parametrize("data", ["shared", "safetensors"])
def test_weights_in_a_safetensors_file(place: tuple[Path, str], run: Run, data: str) -> None:
    from safetensors.torch import save_file

    folder, name = place
    save(folder / "words.pt", f"{name}:Words", 0)
    save_file(torch.load(folder / "words.pt"), folder / "words.safetensors")
    inputs = ("--input", "ids:int64[1,5]", "--input", "mask:float32[1,5]", "--prove", "--onnx-data", data)
    done = run("export", "words.safetensors", "words.onnx", "--module", f"{name}:Words", *inputs)
    assert done.code == 0, done.stderr
    (file,) = [f for f in ck.read("words.onnx").origin.files if f.path.endswith(".safetensors")]
    assert Path(file.path).name == ("words.safetensors" if data == "shared" else "words.onnx.safetensors")
    assert {p.name for p in folder.iterdir() if p.suffix in (".onnx", ".data", ".tmp", ".safetensors")} == {
        "words.safetensors", "words.onnx", Path(file.path).name,
    }  # fmt: skip
    assert ck.prove("words.onnx", module=f"{name}:Words", weights="words.pt", allow_code=True).equal


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def pretrained(folder: Path, model: str, config: str, **settings: object) -> Path:
    """A folder that transformers saved, random weights."""
    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0, 0.3)
    made.save_pretrained(folder)
    return folder


def test_a_decoder_from_its_config(tmp_path: Path, run: Run) -> None:
    """Names of the checkpoint, free batch and sequence, no cache, ids within the vocabulary, and the same outputs."""
    folder = pretrained(
        tmp_path / "gpt2", "GPT2LMHeadModel", "GPT2Config",
        n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    (folder / "modeling_evil.py").write_text("raise SystemExit('code of the folder was run')", "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    done = run("export", folder, tmp_path / "m.onnx", "--prove", "--json")
    assert done.code == 0, done.stderr
    told = done.json
    assert told["module"] == f"GPT2LMHeadModel of {folder / 'config.json'}"
    assert [(value["name"], value["shape"]) for value in told["inputs"]] == [
        ("input_ids", ["batch", "sequence"]),
        ("attention_mask", ["batch", "sequence"]),
    ]
    assert [value["name"] for value in told["outputs"]] == ["logits"]
    assert (told["unused"], told["proved"]) == ([], True)
    weights, graph = ck.read(folder), ck.read(tmp_path / "m.onnx")
    assert len(told["named"]) > 10
    assert all(graph[name].tobytes() == weights[name].tobytes() for name in told["named"])


def test_images_from_their_config_and_inputs_of_ones_own(tmp_path: Path, run: Run) -> None:
    folder = pretrained(
        tmp_path / "vit", "ViTForImageClassification", "ViTConfig", **SIZES, image_size=16, patch_size=8
    )
    done = run("export", folder / "model.safetensors", tmp_path / "m.onnx", "--json")
    assert done.code == 0, done.stderr
    assert done.json["inputs"] == [
        {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 16, 16]}
    ]
    given = ("--input", "pixel_values:float32[1,3,16,16]")
    assert run("export", folder, tmp_path / "n.onnx", *given, "--json").json["inputs"][0]["shape"] == [
        1,
        3,
        16,
        16,
    ]


@pytest.mark.parametrize(
    ("model", "config", "settings", "why"),
    [
        ("ResNetModel", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}, "image_size"),
        (
            "T5Model", "T5Config",
            {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20},
            "encoder-decoder",
        ),
        (
            "Wav2Vec2Model", "Wav2Vec2Config",
            {**SIZES, "conv_dim": [8], "conv_stride": [5], "conv_kernel": [10], "num_feat_extract_layers": 1,
             "num_conv_pos_embedding_groups": 2},
            "input_values",
        ),
    ],
)  # fmt: skip
def test_inputs_that_a_config_does_not_tell(
    tmp_path: Path, run: Run, model: str, config: str, settings: dict[str, object], why: str
) -> None:
    folder = pretrained(tmp_path / "m", model, config, **settings)
    done = run("export", folder, tmp_path / "m.onnx")
    assert (done.code, done.stderr.split(":")[0]) == (2, "error[inputs-unknown]")
    assert why in done.stderr
    assert "--input '" in done.stderr
    assert not (tmp_path / "m.onnx").exists()


def test_weights_that_do_not_fit_their_config(tmp_path: Path, run: Run) -> None:
    folder = pretrained(tmp_path / "m", "BertModel", "BertConfig", **SIZES, vocab_size=20)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), "utf-8")
    done = run("export", folder, tmp_path / "m.onnx")
    assert (done.code, done.stderr.split(":")[0]) == (2, "error[module-misfit]")
    assert "--target" in done.stderr
    (folder / "config.json").write_text("{}", "utf-8")
    assert run("export", folder, tmp_path / "m.onnx").stderr.startswith("error[usage]")


def test_equal_weights_that_the_exporter_merges(place: tuple[Path, str], run: Run) -> None:
    folder, name = place
    (folder / f"{name}.py").write_text(
        "import torch\nfrom torch import nn\ndef build(): return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))\n",
        "utf-8",
    )
    bias = torch.randn(8)
    state = {f"{n}.weight": torch.randn(8, 8) for n in (0, 1)} | {f"{n}.bias": bias.clone() for n in (0, 1)}
    torch.save(state, folder / "w.pt")
    done = run("export", "w.pt", "w.onnx", "--module", f"{name}:build", "--input", "x:float32[1,8]", "--json")
    assert done.code == 0, done.stderr
    assert done.json["unused"] == []
    assert sorted(done.json["merged"] + done.json["named"]) == sorted(state)
    assert len(done.json["merged"]) == 1


ODD = """
import sys, torch
from torch import nn
class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
    def forward(self, x):
        y = self.l(x)
        return {"a": y, "b": (y + 1, [y * 2]), "c": {"d": y - 1}, "e": None}
class Passed(Nested):
    def forward(self, x): return self.l(x), x
class Noise(Nested):
    def forward(self, x): return self.l(x) + torch.rand_like(x)
class Branch(Nested):
    def forward(self, x): return self.l(x) if x.sum() > 0 else x
class Ends(Nested):
    def forward(self, x): sys.exit(0)
class Narrow(Nested):
    def forward(self, x): return self.l.bfloat16()(x.bfloat16()).float()
def leaves(): sys.exit(3)
print("imported")
def chatty():
    print("made")
    made = Nested()
    made.register_forward_hook(lambda *_: print("run"))
    return made
"""


def test_odd_modules(place: tuple[Path, str], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder, name = place
    (folder / f"{name}.py").write_text(ODD, "utf-8")
    torch.save({"l.weight": torch.randn(4, 4), "l.bias": torch.randn(4)}, folder / "w.pt")

    def export(module: str) -> Result:
        line = ("--module", f"{name}:{module}", "--input", "x:float32[2,4]", "--prove")
        return run("export", "w.pt", f"{module}.onnx", *line)

    done = export("Nested")
    assert done.code == 0, done.stderr
    assert [v.name for v in ck.read("Nested.onnx").outputs] == ["a", "b.0", "b.1.0", "c.d"]
    line = ("--module", f"{name}:chatty", "--input", "x:float32[2,4]", "--prove", "--json")
    done = run("export", "w.pt", "chatty.onnx", *line)
    assert done.json["proved"] is True  # and nothing else is printed
    assert "made\n" in done.stderr
    for module, code, words in (
        ("Passed", "export-failed", "gives the input 'x' back"),
        ("Noise", "prove-failed", "chance"),
        ("Branch", "export-failed", "torch cannot export it"),
        ("Ends", "export-failed", "SystemExit: 0"),
        ("Narrow", "model-refused", "— Narrow.onnx\nhint: without --prove"),
        ("leaves", "module-invalid", "ended its process (3)"),
    ):
        done = export(module)
        assert (done.code, done.stdout) == (2, ""), module
        assert done.stderr.startswith(f"error[{code}]")
        assert words in done.stderr
        assert done.stderr.count("\n") <= 2  # torch's own advice and graphs are left out
        assert not (folder / f"{module}.onnx").exists()
