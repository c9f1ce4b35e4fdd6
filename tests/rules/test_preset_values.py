"""Presets against what real modules hold and compute: torch's own wrappers and layers, small models of transformers."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit as ck
from ckptkit.core.graph import TensorGraph
from ckptkit.rules.ruleset import Rules
from tests.rules.families import weights
from tests.rules.support import code_of, stored
from tests.rules.test_families import made, saved

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and transformers' own

NARROW = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def bits(graph: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {name: (tuple(tensor.shape), tensor.tobytes()) for name, tensor in graph.items()}


def arrays(module: Any) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def live(module: Any) -> Any:
    """The module with random weights everywhere, buffers and biases too."""
    state = weights({name: tensor.shape for name, tensor in module.state_dict().items()})
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return module.eval()


def kinds(names: Iterable[str]) -> set[str]:
    return {re.sub("[0-9]+", "#", name) for name in names}


def there_and_back(preset: str, source: TensorGraph, dropped: set[str] | None = None) -> TensorGraph:
    """The converted graph, after showing that it comes back bit for bit."""
    rules = Rules.preset(preset)
    there = rules.apply(source)
    assert set(there.dropped) == (dropped or set())
    back = rules.reversed().apply(there.graph).graph
    assert bits(back) == {name: kept for name, kept in bits(source).items() if name not in there.dropped}
    return there.graph


# wrappers


def network() -> Any:
    nn = torch.nn
    return live(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))))


def test_data_parallel(tmp_path: Path) -> None:
    model = network()
    wrapped = stored(tmp_path, arrays(torch.nn.DataParallel(model)))
    assert bits(there_and_back("unwrap-data-parallel", wrapped)) == bits(arrays(model))


def test_compiled(tmp_path: Path) -> None:
    model = network()
    for wrapped in (torch.compile(model), torch.nn.Sequential(model[0], torch.compile(model[1]))):
        found = Rules.preset("unwrap-compile").apply(stored(tmp_path, arrays(wrapped))).graph
        assert bits(found) == bits(arrays(model))
    assert code_of(Rules.preset("unwrap-compile").reversed) == "rule-lossy"


def test_fully_sharded_and_checkpointed(tmp_path: Path) -> None:
    """With the very words that torch puts into names."""
    fsdp = pytest.importorskip("torch.distributed.fsdp._common_utils", reason="needs torch.distributed")
    wrapper = pytest.importorskip(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper", reason="needs torch.distributed"
    )
    outer, inner = fsdp.FSDP_WRAPPED_MODULE, wrapper._CHECKPOINT_WRAPPED_MODULE
    state = arrays(network())
    wrapped = {f"{outer}._orig_mod.{name.replace('.', f'.{inner}.', 1)}": a for name, a in state.items()}
    assert bits(Rules.preset("unwrap-fsdp").apply(stored(tmp_path, wrapped)).graph) == bits(state)


def test_lightning(tmp_path: Path) -> None:
    model = network()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    lightning = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.0", "state_dict": state}
    torch.save(lightning, tmp_path / "last.ckpt")
    found = there_and_back("unwrap-lightning", ck.read(tmp_path / "last.ckpt"), {"criterion.weight"})
    assert bits(found) == bits(arrays(model))


def test_weight_norm_as_both_of_torch_write_it(tmp_path: Path) -> None:
    conv = live(torch.nn.Conv1d(4, 6, 3))
    old = torch.nn.utils.weight_norm(conv)
    source = stored(tmp_path, {f"a.{name}": array for name, array in arrays(old).items()})
    found = there_and_back("weight-norm-parametrizations", source)
    new = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3))
    new.load_state_dict({name[2:]: torch.from_numpy(t.numpy().copy()) for name, t in found.items()})
    x = torch.ones(1, 4, 5)
    assert torch.equal(new(x), old(x))


# attention


def test_in_proj_is_split_as_torch_attends(tmp_path: Path) -> None:
    attention = live(torch.nn.MultiheadAttention(8, 2, batch_first=True))
    source = stored(tmp_path, {f"a.{name}": array for name, array in arrays(attention).items()})
    found = there_and_back("attention-in-proj-split", source)
    part = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in found.items()}
    x, y = torch.randn(1, 5, 8), torch.randn(1, 7, 8)

    def heads(name: str, value: Any) -> Any:
        projected = torch.nn.functional.linear(
            value, part[f"a.{name}_proj.weight"], part[f"a.{name}_proj.bias"]
        )
        return projected.view(1, -1, 2, 4).transpose(1, 2)

    mixed = torch.nn.functional.scaled_dot_product_attention(heads("q", x), heads("k", y), heads("v", y * 2))
    wanted = attention(x, y, y * 2)[0]
    assert torch.allclose(attention.out_proj(mixed.transpose(1, 2).reshape(1, 5, 8)), wanted, atol=1e-6)


def test_three_equal_parts(tmp_path: Path) -> None:
    fused = {f"b.0.attn.qkv.{p}": a for p, a in arrays(live(torch.nn.Linear(4, 12))).items()}
    found = there_and_back("attention-qkv-split", stored(tmp_path, fused))
    for n, part in enumerate("qkv"):
        assert np.array_equal(
            found[f"b.0.attn.{part}.weight"].numpy(), fused["b.0.attn.qkv.weight"][4 * n :][:4]
        )


def test_three_parts_head_by_head(tmp_path: Path) -> None:
    config = {**NARROW, "vocab_size": 11}
    model = made(("GPTNeoXForCausalLM", "GPTNeoXConfig", config))
    saved(live(model), tmp_path / "neox")  # the number of heads is in its config.json
    source = ck.read(tmp_path / "neox")
    found = there_and_back("attention-qkv-heads-split", source)
    layer = model.gpt_neox.layers[0].attention.query_key_value
    x = torch.randn(2, 8)
    by_head = layer(x).view(2, 2, 3, 4)
    for n, part in enumerate(("query", "key", "value")):
        weight, bias = (
            torch.from_numpy(found[f"gpt_neox.layers.0.attention.{part}.{p}"].numpy().copy())
            for p in ("weight", "bias")
        )
        assert torch.allclose(
            torch.nn.functional.linear(x, weight, bias).view(2, 2, 4), by_head[:, :, n], atol=1e-6
        )


# models of transformers


def test_old_bert(tmp_path: Path) -> None:
    model = live(made(("BertModel", "BertConfig", {**NARROW, "vocab_size": 11})))
    new = arrays(model)
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {}
    for name, array in new.items():
        end = ".".join(name.split(".")[-2:])
        old[name.removesuffix(end) + ends.get(end, end)] = array
    assert "encoder.layer.1.output.LayerNorm.gamma" in old
    assert bits(there_and_back("bert-gamma-beta", stored(tmp_path, old))) == bits(new)
    done = Rules.preset("bert-gamma-beta").apply(stored(tmp_path, new))
    assert [finding.code for finding in done.findings] == ["already-converted"]


def test_gpt2_as_it_is_published(tmp_path: Path) -> None:
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 11, "n_positions": 6}
    model = live(made(("GPT2LMHeadModel", "GPT2Config", settings)))
    wanted = {name: array for name, array in arrays(model).items() if name != "lm_head.weight"}
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 6, 6), "f4")) for i in (0, 1)}
    published = {name.removeprefix("transformer."): array for name, array in wanted.items()} | masks
    found = there_and_back("gpt2-published-hf", stored(tmp_path, published), set(masks))
    assert bits(found) == bits(wanted)
    linear = there_and_back("gpt2-hf-linear", found)
    assert np.array_equal(
        linear["transformer.h.0.attn.c_attn.weight"].numpy(), wanted["transformer.h.0.attn.c_attn.weight"].T
    )


def test_yolos_and_detr(tmp_path: Path) -> None:
    settings = {**NARROW, "image_size": [32, 32], "patch_size": 16, "num_detection_tokens": 2}
    wanted = saved(live(made(("YolosForObjectDetection", "YolosConfig", settings))), tmp_path / "yolos")
    original = Rules.preset("yolos-hf").reversed().apply(wanted).graph
    assert bits(there_and_back("yolos-hf", original)) == bits(wanted)
    assert original["backbone.blocks.1.attn.qkv.weight"].shape == (24, 8)

    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    stages = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "out_features": ["stage4"]}
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in DETR.items()}
    backbone = {"backbone_config": transformers.ResNetConfig(**stages), "use_timm_backbone": False}
    spec = ("DetrForObjectDetection", "DetrConfig", {"d_model": 8, "num_queries": 3, **sizes, **backbone})
    whole = saved(live(made(spec)), tmp_path / "detr")
    # The files on the hub have a backbone of timm here; its own names stay as they are.
    wanted = whole.select([name for name in whole if "conv_encoder" not in name])
    rules = Rules.preset("detr-hf")
    body = stored(
        tmp_path, {"model.backbone.conv_encoder.model.layer1.0.conv1.weight": np.ones((2, 2), "f4")}
    )
    original = rules.reversed().apply(TensorGraph({**wanted, **body}, body.origin)).graph
    assert bits(there_and_back("detr-hf", original)) == bits({**wanted, **body})
    joined = original["transformer.decoder.layers.1.multihead_attn.in_proj_weight"].numpy()
    parts = [wanted[f"model.decoder.layers.1.encoder_attn.{x}_proj.weight"].numpy() for x in "qkv"]
    assert np.array_equal(joined, np.concatenate(parts))
    attention = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    layer = {
        f"transformer.decoder.layers.#.{a}.{p}" for a in ("self_attn", "multihead_attn") for p in attention
    }
    layer |= {f"transformer.decoder.layers.#.linear#.{p}" for p in ("weight", "bias")}
    layer |= {f"transformer.decoder.layers.#.norm#.{p}" for p in ("weight", "bias")}
    assert {name for name in kinds(original) if "decoder.layers" in name} == layer


DETR = {"layers": 2, "attention_heads": 2, "ffn_dim": 16}


class Clip(torch.nn.Module):  # type: ignore[misc]
    """OpenAI's CLIP as far as its names and arithmetic go."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.transformer, self.visual = tower(nn.Module()), tower(nn.Module(), within="transformer")
        self.token_embedding = nn.Embedding(11, 8)
        self.positional_embedding = nn.Parameter(torch.empty(6, 8))
        self.ln_final = nn.LayerNorm(8)
        self.text_projection = nn.Parameter(torch.empty(8, 6))
        self.logit_scale = nn.Parameter(torch.empty([]))
        self.visual.class_embedding = nn.Parameter(torch.empty(8))
        self.visual.positional_embedding = nn.Parameter(torch.empty(5, 8))
        self.visual.conv1 = nn.Conv2d(3, 8, 14, 14, bias=False)
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(8), nn.LayerNorm(8)
        self.visual.proj = nn.Parameter(torch.empty(8, 6))

    def attend(self, blocks: Any, x: Any, mask: Any = None) -> Any:
        for block in blocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
            y = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
        return x

    def forward(self, image: Any, text: Any) -> tuple[Any, Any]:
        v = self.visual
        x = torch.cat([v.class_embedding.expand(1, 1, 8), v.conv1(image).flatten(2).transpose(1, 2)], 1)
        x = self.attend(v.transformer.resblocks, v.ln_pre(x + v.positional_embedding))
        mask = torch.full((6, 6), -torch.inf).triu(1)
        y = self.token_embedding(text) + self.positional_embedding
        y = self.ln_final(self.attend(self.transformer.resblocks, y, mask))
        return v.ln_post(x[:, 0]) @ v.proj, y[:, text.argmax()] @ self.text_projection


def tower(module: Any, within: str = "") -> Any:
    nn = torch.nn
    blocks = []
    for _ in range(2):
        block = nn.Module()
        block.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        block.ln_1, block.ln_2, block.mlp = nn.LayerNorm(8), nn.LayerNorm(8), nn.Module()
        block.mlp.c_fc, block.mlp.c_proj = nn.Linear(8, 32), nn.Linear(32, 8)
        blocks.append(block)
    inner = module
    if within:
        inner = nn.Module()
        setattr(module, within, inner)
    inner.resblocks = nn.ModuleList(blocks)
    return module


def test_clip_computes_the_same(tmp_path: Path) -> None:
    side = {**NARROW, "intermediate_size": 32}
    words = {**side, "vocab_size": 11, "max_position_embeddings": 6, "eos_token_id": 10, "bos_token_id": 9}
    sight = {**side, "image_size": 28, "patch_size": 14}
    config = {"text_config": words, "vision_config": sight, "projection_dim": 6}
    model = made(("CLIPModel", "CLIPConfig", config))
    wanted = saved(model, tmp_path / "hf")
    original = live(Clip())
    found = there_and_back("clip-openai-hf", stored(tmp_path, arrays(original)))
    assert {name: found[name].shape for name in found} == {name: wanted[name].shape for name in wanted}
    new = {name: tensor.numpy().copy() for name, tensor in found.items()}
    save_file(new, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path / "hf").eval()
    image, text = torch.randn(1, 3, 28, 28), torch.tensor([[9, 1, 2, 10, 0, 0]])
    with torch.no_grad():
        outputs = loaded(pixel_values=image, input_ids=text)
        for ours, theirs in zip(
            original(image, text), (outputs.image_embeds, outputs.text_embeds), strict=True
        ):
            assert torch.allclose(ours / ours.norm(), theirs, atol=1e-5)


def test_t5(tmp_path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 11}
    wanted = saved(live(made(("T5ForConditionalGeneration", "T5Config", sizes))), tmp_path / "t5")
    google = Rules.preset("t5-tf-hf").reversed().apply(wanted).graph
    assert bits(there_and_back("t5-tf-hf", google)) == bits(wanted)
    block = "block_#/layer_#"
    attention = {
        f"encoder/{block}/SelfAttention/{x}" for x in ("q", "k", "v", "o", "relative_attention_bias")
    }
    attention |= {f"encoder/{block}/layer_norm/scale", "encoder/final_layer_norm/scale"}
    attention |= {f"encoder/{block}/DenseReluDense/{x}/kernel" for x in ("wi", "wo")}
    decoder = {name.replace("encoder", "decoder") for name in attention}
    decoder |= {f"decoder/{block}/EncDecAttention/{x}" for x in "qkvo"}
    assert kinds(google) == attention | decoder | {"shared/embedding"}
    assert google["encoder/block_001/layer_001/DenseReluDense/wi/kernel"].shape == (8, 16)
    assert google["encoder/block_000/layer_000/SelfAttention/relative_attention_bias"].shape == (2, 32)


def test_segment_anything(tmp_path: Path) -> None:
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision |= {"window_size": 2, "global_attn_indexes": [1], "output_channels": 8, "mlp_dim": 32}
    prompt = {"hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    mask = {"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": mask}
    wanted = saved(made(("SamModel", "SamConfig", config)), tmp_path / "sam")
    meta = Rules.preset("sam-hf").reversed().apply(wanted).graph
    assert bits(there_and_back("sam-hf", meta)) == bits(wanted)
    for name in (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "prompt_encoder.mask_downscaling.6.bias",
        "mask_decoder.output_upscaling.3.weight", "mask_decoder.output_hypernetworks_mlps.2.layers.1.weight",
        "mask_decoder.iou_prediction_head.layers.2.bias", "mask_decoder.transformer.norm_final_attn.weight",
        "image_encoder.neck.2.weight", "image_encoder.blocks.1.attn.rel_pos_h",
    ):  # fmt: skip
        assert name in meta


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_wav2vec2(norm: str, tmp_path: Path) -> None:
    layers = {"conv_dim": [4, 4], "conv_stride": [2, 2], "conv_kernel": [3, 3], "conv_bias": norm == "layer"}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": norm}
    codes = {"num_codevectors_per_group": 4, "codevector_dim": 4, "proj_codevector_dim": 4}
    spec = ("Wav2Vec2ForPreTraining", "Wav2Vec2Config", {**NARROW, **layers, **places, **codes})
    wanted = saved(made(spec), tmp_path / "hf")
    fairseq = Rules.preset("wav2vec2-fairseq-hf").reversed().apply(wanted).graph
    assert bits(there_and_back("wav2vec2-fairseq-hf", fairseq)) == bits(wanted)
    last = {"group": "0.2.weight", "layer": "1.2.1.weight"}[norm]
    assert f"feature_extractor.conv_layers.{last}" in fairseq
    assert {"mask_emb", "post_extract_proj.bias", "encoder.pos_conv.0.weight_g", "quantizer.vars"} <= set(
        fairseq
    )


# names and shapes of modules that are not here


@pytest.mark.parametrize("name", ["ssd300-amdegroot-torchvision", "vgg-torchvision-timm"])
def test_layouts(name: str, tmp_path: Path) -> None:
    layouts = json.loads((Path(__file__).parent / "layouts.json").read_text("utf-8"))[name]
    found = there_and_back(name, stored(tmp_path, weights(layouts["source"])))
    assert {name: list(found[name].shape) for name in found} == layouts["target"]


def test_a_linear_layer_as_a_convolution(tmp_path: Path) -> None:
    layouts = json.loads((Path(__file__).parent / "layouts.json").read_text("utf-8"))["vgg-torchvision-timm"]
    source = weights(layouts["source"])
    found = Rules.preset("vgg-torchvision-timm").apply(stored(tmp_path, source)).graph
    kernel = torch.from_numpy(found["pre_logits.fc1.weight"].numpy().copy())
    x = torch.randn(1, kernel.shape[1], 7, 7)
    wanted = torch.nn.functional.linear(x.flatten(1), torch.from_numpy(source["classifier.0.weight"]))
    assert torch.allclose(torch.nn.functional.conv2d(x, kernel).flatten(1), wanted, atol=1e-5)


# TensorFlow's cells


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def cell(sequence: Any, kernel: Any, bias: Any, projection: Any) -> Any:
    """TensorFlow's LSTM cell: gates i, j, f, o in one matrix, 1 added to the forget gate, the state projected."""
    state, memory, found = np.zeros(projection.shape[1]), np.zeros(projection.shape[0]), []
    for x in sequence:
        i, j, f, o = np.split(np.concatenate([x, state]) @ kernel + bias, 4)
        memory = sigmoid(f + 1) * memory + sigmoid(i) * np.tanh(j)
        state = (sigmoid(o) * np.tanh(memory)) @ projection
        found.append(state)
    return np.array(found)


def test_lstm_computes_what_tensorflow_computed(tmp_path: Path) -> None:
    shapes = {}
    for n, width in enumerate((5, 3)):
        name = f"rnn/multi_rnn_cell/cell_{n}/lstm_cell"
        shapes |= {
            f"{name}/kernel": (width + 3, 32),
            f"{name}/bias": (32,),
            f"{name}/projection/kernel": (8, 3),
        }
    source = weights(shapes)
    rules = Rules.preset("lstm-tf-torch")
    found = rules.apply(stored(tmp_path, source)).graph
    lstm = torch.nn.LSTM(5, 8, 2, proj_size=3)
    lstm.load_state_dict({name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in found.items()})
    x = np.random.default_rng(1).normal(size=(6, 5)).astype("f4")
    wanted = x
    for n in (0, 1):
        name = f"rnn/multi_rnn_cell/cell_{n}/lstm_cell"
        wanted = cell(wanted, *(source[f"{name}/{part}"] for part in ("kernel", "bias", "projection/kernel")))
    assert np.allclose(lstm(torch.from_numpy(x))[0].detach().numpy(), wanted, atol=1e-5)

    assert code_of(rules.reversed) == "rule-approximate"
    back = rules.reversed(approximate=True).apply(found).graph
    assert set(back) == set(source)
    for name, array in source.items():
        assert np.allclose(back[name].numpy(), array, rtol=0, atol=2**-23 if name.endswith("bias") else 0), (
            name
        )


def test_elmo(tmp_path: Path) -> None:
    """Each part of AllenNLP's module computes what TensorFlow's graph computed from the published weights."""
    shapes: dict[str, Any] = {"char_embed": (261, 4), "CNN_proj/W_proj": (6, 3), "CNN_proj/b_proj": (3,)}
    shapes |= {"CNN/W_cnn_0": (1, 2, 4, 6), "CNN/b_cnn_0": (6,)}
    for part, shape in (
        ("W_carry", (6, 6)),
        ("b_carry", (6,)),
        ("W_transform", (6, 6)),
        ("b_transform", (6,)),
    ):
        shapes[f"CNN_high_0/{part}"] = shape
    lstm = "RNN_{}/RNN/MultiRNNCell/Cell{}/LSTMCell/"
    for d in (0, 1):
        for n in (0, 1):
            name = lstm.format(d, n)
            shapes |= {f"{name}W_0": (6, 32), f"{name}B": (32,), f"{name}W_P_0": (8, 3)}
    source = weights(shapes)
    rules = Rules.preset("elmo-tf-allennlp")
    graph = rules.apply(stored(tmp_path, source)).graph
    made = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in graph.items()}
    rng = np.random.default_rng(1)

    x = rng.normal(size=(5, 3)).astype("f4")
    for d, direction in enumerate(("forward", "backward")):
        for n in (0, 1):
            layer = f"_elmo_lstm.{direction}_layer_{n}."
            torchs = torch.nn.LSTM(3, 8, proj_size=3)
            torchs.load_state_dict(
                {"weight_ih_l0": made[f"{layer}input_linearity.weight"],
                 "weight_hh_l0": made[f"{layer}state_linearity.weight"],
                 "bias_ih_l0": torch.zeros(32), "bias_hh_l0": made[f"{layer}state_linearity.bias"],
                 "weight_hr_l0": made[f"{layer}state_projection.weight"]}
            )  # fmt: skip
            wanted = cell(x, *(source[lstm.format(d, n) + part] for part in ("W_0", "B", "W_P_0")))
            assert np.allclose(torchs(torch.from_numpy(x))[0].detach().numpy(), wanted, atol=1e-5)

    y = rng.normal(size=6).astype("f4")
    carry = sigmoid(y @ source["CNN_high_0/W_carry"] + source["CNN_high_0/b_carry"])
    change = np.maximum(y @ source["CNN_high_0/W_transform"] + source["CNN_high_0/b_transform"], 0)
    highway = "_token_embedder._highways._layers.0."
    both = made[f"{highway}weight"] @ torch.from_numpy(y) + made[f"{highway}bias"]
    gate = torch.sigmoid(both[6:])
    found = gate * torch.from_numpy(y) + (1 - gate) * both[:6].relu()
    assert np.allclose(found.numpy(), carry * change + (1 - carry) * y, atol=1e-5)

    letters = rng.normal(size=(7, 4)).astype("f4")
    windows = np.stack([letters[i : i + 2].ravel() for i in range(6)])
    wanted = windows @ source["CNN/W_cnn_0"].reshape(8, 6) + source["CNN/b_cnn_0"]
    convolved = torch.nn.functional.conv1d(
        torch.from_numpy(letters.T.copy()),
        made["_token_embedder.char_conv_0.weight"],
        made["_token_embedder.char_conv_0.bias"],
    )
    assert np.allclose(convolved.numpy().T, wanted, atol=1e-5)

    embedding = made["_token_embedder._char_embedding_weights"]
    assert embedding.shape == (262, 4)
    assert not embedding[0].any()
    back = rules.reversed(approximate=True).apply(graph).graph
    assert set(back) == set(source)
    for name, array in source.items():
        assert np.allclose(back[name].numpy(), array, rtol=0, atol=2**-23 if name.endswith("/B") else 0), name
