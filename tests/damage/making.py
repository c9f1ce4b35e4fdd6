"""Damaged and mismatched checkpoints, made from checkpoints of real architectures.

A maker works in the current folder: it writes the damaged checkpoint, and `base.safetensors` if it is to be
checked against one, and returns the path of the first. Where real checkpoints are at hand, small
convolutional networks are those; otherwise weights are random, names and shapes as the architectures have.
"""

import gzip
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptkit as ck
from tests.support import ROOT

Weights = dict[str, np.ndarray]
Rename = Callable[[str], str]
D = 32


# architectures


def random(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Small normal numbers, the same every time."""
    numbers = np.random.default_rng(7)
    return {
        name: (numbers.standard_normal(shape) * 0.05).astype(np.float32) for name, shape in shapes.items()
    }


def bert(layers: int = 2, vocab: int = 120, classes: int = 3, positions: int = 48, width: int = D) -> Weights:
    """Hugging Face's BertForSequenceClassification."""
    norm = {"weight": (width,), "bias": (width,)}
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (vocab, width),
        "bert.embeddings.position_embeddings.weight": (positions, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        **{f"bert.embeddings.LayerNorm.{part}": shape for part, shape in norm.items()},
    }
    sizes = {
        **{f"attention.self.{part}": (width, width) for part in ("query", "key", "value")},
        "attention.output.dense": (width, width),
        "intermediate.dense": (4 * width, width),
        "output.dense": (width, 4 * width),
        "attention.output.LayerNorm": (width,),
        "output.LayerNorm": (width,),
    }
    for i in range(layers):
        for part, shape in sizes.items():
            shapes[f"bert.encoder.layer.{i}.{part}.weight"] = shape
            shapes[f"bert.encoder.layer.{i}.{part}.bias"] = shape[:1]
    head = {"bert.pooler.dense": (width, width), "classifier": (classes, width)}
    for part, shape in head.items():
        shapes |= {f"{part}.weight": shape, f"{part}.bias": shape[:1]}
    return random(shapes)


def llama(layers: int = 3, vocab: int = 96, heads: bool = True) -> Weights:
    """Hugging Face's LlamaForCausalLM, with fewer key and value heads."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, D)}
    for i in range(layers):
        rows = {"q": D, "k": D // 2, "v": D // 2}
        attention = {f"self_attn.{part}_proj": (size, D) for part, size in rows.items()}
        mlp = {"mlp.gate_proj": (2 * D, D), "mlp.up_proj": (2 * D, D), "mlp.down_proj": (D, 2 * D)}
        norms = {"input_layernorm": (D,), "post_attention_layernorm": (D,)}
        parts = {**attention, "self_attn.o_proj": (D, D), **mlp, **norms}
        shapes |= {f"model.layers.{i}.{part}.weight": shape for part, shape in parts.items()}
    shapes["model.norm.weight"] = (D,)
    return random(shapes | ({"lm_head.weight": (vocab, D)} if heads else {}))


def gpt2(layers: int = 2) -> Weights:
    """Hugging Face's GPT2LMHeadModel, whose linear layers are kept transposed."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (96, D),
        "transformer.wpe.weight": (64, D),
    }
    sizes = {
        "attn.c_attn": (D, 3 * D),
        "attn.c_proj": (D, D),
        "mlp.c_fc": (D, 4 * D),
        "mlp.c_proj": (4 * D, D),
    }
    for i in range(layers):
        for part, shape in sizes.items():
            shapes |= {f"transformer.h.{i}.{part}.weight": shape, f"transformer.h.{i}.{part}.bias": shape[1:]}
        shapes |= {f"transformer.h.{i}.ln_{k}.{p}": (D,) for k in (1, 2) for p in ("weight", "bias")}
    return random(shapes | {f"transformer.ln_f.{part}": (D,) for part in ("weight", "bias")})


def vit(grid: int = 4, classes: int = 10) -> Weights:
    """timm's vision transformer."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, grid * grid + 1, D),
        "patch_embed.proj.weight": (D, 3, 8, 8),
        "patch_embed.proj.bias": (D,),
    }
    sizes = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
    for i in range(2):
        for part, shape in sizes.items():
            shapes |= {f"blocks.{i}.{part}.weight": shape, f"blocks.{i}.{part}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.norm{k}.{part}": (D,) for k in (1, 2) for part in ("weight", "bias")}
    shapes |= {"norm.weight": (D,), "norm.bias": (D,), "head.weight": (classes, D), "head.bias": (classes,)}
    return random(shapes)


@cache
def _data() -> Path | None:
    for place in (os.environ.get("CKPTKIT_DATA"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / "cifar_resnet").is_dir():
            return Path(place)
    return None


def resnet(blocks: int = 3) -> Weights:
    """The CIFAR ResNet of depth 6·blocks + 2: 20 and 32 are real where the real ones are at hand."""
    data = _data()
    if data and blocks in (3, 5):
        (path,) = (data / "cifar_resnet").glob(f"resnet{6 * blocks + 2}-*.th")
        return {name.removeprefix("module."): tensor.numpy() for name, tensor in ck.read(path).items()}
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3)}
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"bn1.{part}": (16,) for part in parts}
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            before = width // 2 if block == 0 and stage > 1 else width
            for k, channels in ((1, before), (2, width)):
                shapes[f"layer{stage}.{block}.conv{k}.weight"] = (width, channels, 3, 3)
                shapes |= {f"layer{stage}.{block}.bn{k}.{part}": (width,) for part in parts}
    return random(shapes | {"linear.weight": (10, 64), "linear.bias": (10,)})


# making


def changed(weights: Weights, rename: Rename) -> Weights:
    return {rename(name): array for name, array in weights.items()}


def without(weights: Weights, *parts: str) -> Weights:
    return {name: array for name, array in weights.items() if not any(part in name for part in parts)}


def write(path: str, weights: Weights) -> str:
    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, path, {"format": "pt"})
    return path


def misfit(base: Callable[[], Weights], change: Callable[[Weights], Weights]) -> Callable[[], str]:
    """A maker: the base as the target, and what became of it."""

    def make() -> str:
        weights = base()
        write("base.safetensors", weights)
        return write("it.safetensors", change(dict(weights)))

    return make


def instead(base: Callable[[], Weights], other: Callable[[], Weights]) -> Callable[[], str]:
    """A maker: another checkpoint than the target."""
    return misfit(base, lambda _: other())


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: changed(weights, lambda name: prefix + name)


def replaced(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: changed(weights, lambda name: name.replace(old, new))


def ill(change: Callable[[Weights], Weights], base: Callable[[], Weights] = bert) -> Callable[[], str]:
    """A maker: a checkpoint that is ill by itself."""
    return lambda: write("it.safetensors", change(base()))


def broken(change: Callable[[bytes], bytes], name: str = "it.safetensors") -> Callable[[], str]:
    """A maker: the bytes of a file are changed."""

    def make() -> str:
        if name.endswith(".safetensors"):
            write(name, bert())
        else:
            ck.convert(write("whole.safetensors", bert()), name)
        Path(name).write_bytes(change(Path(name).read_bytes()))
        return name

    return make


def content(name: str, data: bytes) -> Callable[[], str]:
    def make() -> str:
        Path(name).write_bytes(data)
        return name

    return make


def fixture(name: str) -> Callable[[], str]:
    """A maker: a copy of a committed example."""

    def make() -> str:
        source = ROOT / "fixtures" / name
        target = Path(source.name)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        return str(target)

    return make


def folder(change: Callable[[Path], None], config: dict[str, Any] | None = None) -> Callable[[], str]:
    """A maker: a sharded Hugging Face folder, of which something is changed."""

    def make() -> str:
        ck.convert(write("whole.safetensors", llama()), "it/", max_shard_size=20_000)
        text = {"model_type": "llama", "torch_dtype": "float32", **(config or {})}
        Path("it/config.json").write_text(json.dumps(text), "utf-8")
        change(Path("it"))
        return "it"

    return make


def index(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        (file,) = path.glob("*.index.json")
        found = json.loads(file.read_text("utf-8"))
        change(found)
        file.write_text(json.dumps(found), "utf-8")

    return edit


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("*-of-*.safetensors"))


def quantised(weights: Weights) -> Weights:
    """Integers for the matrices, and no scales."""
    return {n: (a * 500).astype(np.int8) if "layer." in n and a.ndim == 2 else a for n, a in weights.items()}


def with_scales(weights: Weights) -> Weights:
    found = quantised(weights)
    scales = {f"{n}_scale": np.ones(1, np.float32) for n, a in found.items() if a.dtype == np.int8}
    return found | scales


def transposed(weights: Weights) -> Weights:
    """As TensorFlow keeps matrices."""
    return {
        n: a.T if "intermediate.dense.weight" in n or "layer.0.output.dense.weight" in n else a
        for n, a in weights.items()
    }


def apart(weights: Weights) -> Weights:
    """Key, query and value as three tensors."""
    found: Weights = {}
    for name, array in weights.items():
        parts = zip("qkv", np.split(array, 3) if ".qkv." in name else [array], strict=False)
        found |= {name.replace(".qkv.", f".{part}_proj."): piece for part, piece in parts}
    return found


def fused(weights: Weights) -> Weights:
    found = without(weights, "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    for i in range(3):
        layer = f"model.layers.{i}."
        for whole, parts in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
            part = whole.partition(".")[0]
            pieces = [weights[f"{layer}{part}.{p}_proj.weight"] for p in parts]
            found[f"{layer}{whole}.weight"] = np.concatenate(pieces)
    return found


def in_proj() -> str:
    base = llama()
    full = {n: np.concatenate([a, a]) if ".k_proj" in n or ".v_proj" in n else a for n, a in base.items()}
    write("base.safetensors", full)
    found = without(full, "q_proj", "k_proj", "v_proj")
    for i in range(3):
        at = f"model.layers.{i}.self_attn."
        found[at + "in_proj_weight"] = np.concatenate([full[f"{at}{p}_proj.weight"] for p in "qkv"])
    return write("it.safetensors", found)


def weight_norm(first: str, second: str) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        found = dict(weights)
        for name in [n for n in weights if n.endswith("conv1.weight") and "layer" in n]:
            array, stem = found.pop(name), name.removesuffix("weight")
            norm = np.sqrt((array**2).sum(axis=(1, 2, 3), keepdims=True))
            found |= {stem + first: norm, stem + second: array}
        return found

    return change


OLD_PARTS = ("weight_g", "weight_v")
NEW_PARTS = ("parametrizations.weight.original0", "parametrizations.weight.original1")


def ema_beside(weights: Weights) -> Weights:
    return weights | {f"ema.{name}": array for name, array in weights.items()}


def lora(weights: Weights) -> Weights:
    added = {
        n.replace(".weight", ".lora_A.weight"): np.ones((4, D), np.float32) for n in weights if "query.w" in n
    }
    return weights | added


def kernels(weights: Weights) -> Weights:
    """Convolutions as TensorFlow keeps them: height, width, in, out."""
    return {n: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for n, a in weights.items()}


def presets(preset: str, base: Callable[[], Weights], reverse: bool = False) -> Callable[[], str]:
    """A maker: the names and layouts of another library."""

    def make() -> str:
        write("one.safetensors", base())
        ck.convert("one.safetensors", "two.safetensors", rules=[preset])
        os.rename(
            *("two.safetensors", "base.safetensors")
            if not reverse
            else ("one.safetensors", "base.safetensors")
        )
        return "one.safetensors" if not reverse else "two.safetensors"

    return make


def published_gpt2(weights: Weights) -> Weights:
    found = changed(weights, lambda name: name.removeprefix("transformer."))
    return found | {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for i in range(2)}


def torch_save(
    objects: Callable[[Any, dict[str, Any]], Any], base: Callable[[], Weights] = resnet
) -> Callable[[], str]:
    """A maker: `objects(torch, tensors)` saved by torch, and the base as the target."""

    def make() -> str:
        torch = pytest.importorskip("torch", reason="needs the torch extra")
        weights = base()
        write("base.safetensors", weights)
        torch.save(objects(torch, {n: torch.from_numpy(a.copy()) for n, a in weights.items()}), "it.ckpt")
        return "it.ckpt"

    return make


def optimizer(torch: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    state = {i: {"exp_avg": torch.zeros_like(t)} for i, t in enumerate(tensors.values())}
    return {"model": tensors, "optimizer": {"state": state, "param_groups": [{"lr": 0.1}]}, "epoch": 3}


def lightning(torch: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    wrapped = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return {"state_dict": wrapped, "pytorch-lightning_version": "2.4.0", "epoch": 1, "callbacks": {}}


def averaged(torch: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return {"ema_state_dict": {"n_averaged": torch.tensor(3), **wrapped}}


def tied() -> str:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    tensors = {n: torch.from_numpy(a) for n, a in llama(heads=False).items()}
    torch.save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, "base.pt")
    os.rename("base.pt", "base.safetensors")  # a file is known by its content
    return write("it.safetensors", llama(heads=False))


def rezipped(compression: int, root: str) -> Callable[[], str]:
    def make() -> str:
        ck.convert(write("whole.safetensors", bert()), "whole.pt")
        with zipfile.ZipFile("whole.pt") as old, zipfile.ZipFile("it.pt", "w", compression) as new:
            for name in old.namelist():
                new.writestr(name.replace("archive/", root), old.read(name))
        return "it.pt"

    return make


def onnx(change: Callable[[bytes], bytes] | None = None) -> Callable[[], str]:
    def make() -> str:
        for name in ("external.onnx", "external.onnx.data"):
            shutil.copy(ROOT / "fixtures" / "good" / "onnx" / name, name)
        data = Path("external.onnx.data")
        data.unlink() if change is None else data.write_bytes(change(data.read_bytes()))
        return "external.onnx"

    return make


def zipped() -> str:
    write("model.safetensors", bert())
    with zipfile.ZipFile("it.zip", "w") as archive:
        archive.write("model.safetensors")
    os.remove("model.safetensors")
    return "it.zip"


def gzipped() -> str:
    data = Path(write("it.safetensors", bert())).read_bytes()
    os.remove("it.safetensors")
    Path("it.safetensors.gz").write_bytes(gzip.compress(data, mtime=0))
    return "it.safetensors.gz"


def spoiled(value: float, every: bool = False) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        array = weights["bert.encoder.layer.1.output.dense.weight"]
        array[...] = value if every else array
        array[3, 5] = value
        return weights

    return change


def lone_shard() -> str:
    ck.convert(write("base.safetensors", llama()), "it/", max_shard_size=20_000)
    return str(shards(Path("it"))[0])


def second_copy(path: Path) -> None:
    first, second, *_ = shards(path)
    both = load_file(second) | dict([next(iter(load_file(first).items()))])
    save_file(both, second, {"format": "pt"})


def wrong_header(data: bytes) -> bytes:
    assert b"[120,32]" in data
    return data.replace(b"[120,32]", b"[120,64]", 1)


def shorter_header(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", length - 40) + data[8:]


def folded(weights: Weights) -> Weights:
    """Batch norms in the convolutions before them, as an exporter leaves them."""
    kept = {name: array for name, array in weights.items() if "bn" not in name}
    biases = {
        name.replace("weight", "bias"): array[:, 0, 0, 0] for name, array in kept.items() if "conv" in name
    }
    return kept | biases


def doubled(weights: Weights) -> Weights:
    again = {
        n.replace(".layer.", ".layer.").replace(f"layer.{i}.", f"layer.{i + 2}."): a
        for n, a in weights.items()
        for i in (0, 1)
        if f"layer.{i}." in n
    }
    return weights | again


HALF = lambda data: data[: len(data) // 2]  # noqa: E731
MASKS = {"h.0.attn.masked_bias": np.zeros((), np.float32)}
