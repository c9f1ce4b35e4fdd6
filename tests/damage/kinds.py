"""Each kind of damage, and what `check` must say of it. docs/causes.md is generated from this table."""

import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.damage.making import (
    HALF,
    NEW_PARTS,
    OLD_PARTS,
    apart,
    averaged,
    bert,
    broken,
    content,
    doubled,
    ema_beside,
    fixture,
    folded,
    folder,
    fused,
    gpt2,
    gzipped,
    ill,
    in_proj,
    index,
    instead,
    kernels,
    lightning,
    llama,
    lone_shard,
    lora,
    misfit,
    onnx,
    optimizer,
    prefixed,
    presets,
    published_gpt2,
    quantised,
    replaced,
    resnet,
    rezipped,
    second_copy,
    shards,
    shorter_header,
    spoiled,
    tied,
    torch_save,
    transposed,
    vit,
    weight_norm,
    with_scales,
    without,
    wrong_header,
    zipped,
)  # fmt: skip


class Kind(NamedTuple):
    """One kind of damage.

    Attributes:
        name: what happened, in words.
        make: writes it into the current folder and returns its path; a `base.safetensors` there is the target.
        code: of the error, or of a finding.
        says: words of the answer, the cause, or what was found.
        mends: words of the suggested command, which must mend it; "" where nothing but another copy of the
            weights can, "-" where something could and no command is suggested.
        options: of `check`.
    """

    name: str
    make: Callable[[], str]
    code: str
    says: str
    mends: str = ""
    options: tuple[str, ...] = ()


STALE = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
READ = ("--values",)
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>please</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 438000000\n"

# fmt: off
NAMES = (
    Kind("prefix of DataParallel", misfit(resnet, prefixed("module.")), "names-differ", "DataParallel", "strip:module."),
    Kind("prefix of torch.compile", misfit(bert, prefixed("_orig_mod.")), "names-differ", "torch.compile", "strip:_orig_mod."),
    Kind("compiled, then distributed", misfit(bert, prefixed("module._orig_mod.")), "names-differ", "prefix 'module._orig_mod.'", "strip:"),
    Kind("parts compiled", misfit(bert, replaced("attention.self.", "attention.self._orig_mod.")), "names-differ", "'_orig_mod' within", "unwrap:_orig_mod"),
    Kind("FSDP's wrappers", misfit(llama, replaced("self_attn.", "_fsdp_wrapped_module.self_attn.")), "names-differ", "FSDP", "unwrap:_fsdp_wrapped_module"),
    Kind("FSDP and activation checkpointing", misfit(llama, lambda w: prefixed("_fsdp_wrapped_module.")(replaced("mlp.", "_checkpoint_wrapped_module.mlp.")(w))),
         "names-differ", "activation checkpointing", "unwrap:"),
    Kind("a part distributed", misfit(resnet, replaced("layer", "backbone.module.layer")), "names-differ", "DistributedDataParallel", "strip:backbone.module."),
    Kind("a trainer's prefix", torch_save(lightning), "names-differ", "prefix 'model.'", "strip:model."),
    Kind("an averaged copy alone", torch_save(averaged), "names-differ", "prefix 'module.'", "strip:module."),
    Kind("an averaged copy's names", misfit(bert, prefixed("ema_model.")), "names-differ", "averaged", "strip:ema_model."),
    Kind("a level more", misfit(bert, prefixed("model.encoder.")), "names-differ", "prefix 'model.encoder.'", "strip:model.encoder."),
    Kind("a level less", misfit(llama, replaced("model.", "")), "names-differ", "lack the prefix 'model.'", "add:model."),
    Kind("the model without its head's level", misfit(lambda: without(bert(), "classifier"), replaced("bert.", "")), "names-differ", "lack the prefix 'bert.'", "add:bert."),
    Kind("another library's names", presets("vit-timm-hf", vit), "names-differ", "vit-timm-hf", "--rules vit-timm-hf"),
    Kind("another library's names, the other way", presets("vit-timm-hf", vit, reverse=True), "names-differ", "vit-timm-hf", "--reverse"),
    Kind("as published, with masks", misfit(gpt2, published_gpt2), "names-differ", "lack the prefix 'transformer.'", "add:transformer."),
    Kind("gamma and beta", misfit(bert, lambda w: replaced("LayerNorm.bias", "LayerNorm.beta")(replaced("LayerNorm.weight", "LayerNorm.gamma")(w))),
         "names-differ", "bert-gamma-beta", "--rules bert-gamma-beta"),
    Kind("gamma and beta elsewhere", misfit(llama, replaced("norm.weight", "norm.gamma")), "tensor-missing", "gamma and beta", "gamma"),
    Kind("weight norm in parts", misfit(resnet, weight_norm(*OLD_PARTS)), "names-differ", "weight-norm-fold", "weight-norm-fold"),
    Kind("weight norm, newer names", misfit(lambda: weight_norm(*OLD_PARTS)(resnet()), lambda w: weight_norm(*NEW_PARTS)(resnet())),
         "names-differ", "weight-norm-parametrizations", "--reverse"),
    Kind("weight norm, newer names in parts", misfit(resnet, weight_norm(*NEW_PARTS)), "tensor-missing", "weight normalisation", "-"),
    Kind("a head of another name", misfit(resnet, replaced("linear.", "fc.")), "tensor-missing", "perhaps", "linear"),
    Kind("other letter case", misfit(bert, replaced("LayerNorm", "layernorm")), "tensor-missing", "perhaps", "LayerNorm"),
    Kind("a misspelt layer", misfit(bert, replaced("layer.0.intermediate", "layer.0.intermedate")), "tensor-missing", "perhaps", "intermedate"),
    Kind("layers called otherwise", misfit(llama, replaced("layers.", "blocks.")), "tensor-missing", "perhaps", "blocks"),
)
TENSORS = (
    Kind("a tie dropped", tied, "tie-dropped", "tied to model.embed_tokens.weight", "tie: lm_head.weight"),
    Kind("an output matrix not saved", misfit(llama, lambda w: without(w, "lm_head")), "tensor-missing", "usually tied", "tie: lm_head.weight"),
    Kind("a vocabulary grown", instead(bert, lambda: bert(vocab=128)), "shape-differs", "a vocabulary of 128 instead of 120", "--fit base.safetensors"),
    Kind("a vocabulary shrunk", instead(bert, lambda: bert(vocab=100)), "shape-differs", "a vocabulary of 100 instead of 120", "--fit base.safetensors"),
    Kind("another number of classes", instead(vit, lambda: vit(classes=3)), "shape-differs", "another number of classes", "--fit base.safetensors"),
    Kind("no head", misfit(bert, lambda w: without(w, "classifier")), "tensor-missing", "without its head", "--fit base.safetensors"),
    Kind("positions cut", instead(lambda: bert(positions=32), bert), "shape-differs", "position embeddings", "slice"),
    Kind("positions added", instead(lambda: bert(positions=64), bert), "shape-differs", "position embeddings", "--fit base.safetensors"),
    Kind("another image size", instead(lambda: vit(grid=6), vit), "shape-differs", "image size", "resize_grid"),
    Kind("some matrices transposed", misfit(bert, transposed), "shape-differs", "transposed", "transpose"),
    Kind("every matrix transposed", misfit(lambda: {n: a.T if "h." in n and a.ndim == 2 else a for n, a in gpt2().items()}, lambda _: gpt2()),
         "names-differ", "gpt2-hf-linear", "--rules gpt2-hf-linear"),
    Kind("convolutions of TensorFlow", misfit(resnet, kernels), "shape-differs", "another framework's convolution", "permute"),
    Kind("dimensions of 1", misfit(resnet, lambda w: w | {"linear.weight": w["linear.weight"][:, :, None, None]}), "shape-differs", "dimensions of 1", "reshape"),
    Kind("grey images", misfit(resnet, lambda w: w | {"conv1.weight": w["conv1.weight"][:, :1]}), "shape-differs", "1 input channels instead of 3", "--fit base.safetensors"),
    Kind("batch norms folded", misfit(resnet, folded), "tensor-missing", "batch norms are folded"),
    Kind("query, key and value apart", misfit(vit, apart), "tensor-missing", "apart", "concat"),
    Kind("query, key and value fused", misfit(llama, fused), "tensor-missing", "fused into", "split"),
    Kind("query, key and value in torch's in_proj", in_proj, "names-differ", "in-proj-split", "attention-in-proj-split"),
    Kind("fewer layers", instead(lambda: resnet(5), resnet), "tensor-missing", "fewer layers"),
    Kind("more layers", instead(resnet, lambda: resnet(5)), "tensor-unexpected", "more layers"),
    Kind("a layer missing between", misfit(llama, lambda w: without(w, "layers.1.")), "tensor-missing", "a gap in the layers"),
    Kind("the last layer missing", misfit(llama, lambda w: without(w, "layers.2.")), "tensor-missing", "fewer layers"),
    Kind("layers doubled", misfit(bert, doubled), "tensor-unexpected", "more layers"),
    Kind("another width", instead(bert, lambda: bert(width=48)), "shape-differs", "right names, other sizes"),
    Kind("another architecture", instead(bert, resnet), "tensor-missing", "wrong architecture"),
    Kind("two files exchanged", instead(resnet, vit), "tensor-missing", "wrong architecture"),
    Kind("buffers of older code", misfit(bert, lambda w: w | {"bert.embeddings.position_ids": np.arange(48)[None]}), "tensor-unexpected", "no longer saves", "--exclude"),
    Kind("an adapter beside the weights", misfit(bert, lora), "tensor-unexpected", "LoRA", "--exclude"),
    Kind("an averaged copy beside the weights", misfit(bert, ema_beside), "tensor-unexpected", "averaged", "--exclude 'ema.*'"),
    Kind("a tensor renamed twice over", misfit(llama, lambda w: {**without(w, "norm.weight"), **replaced("norm", "ln")({n: a for n, a in w.items() if "norm.weight" in n})}),
         "tensor-missing", "perhaps", "ln"),
    Kind("saved in half precision", misfit(bert, lambda w: {n: a.astype(np.float16) for n, a in w.items()}), "dtype-differs", "another precision", "--dtype float32", ("contract",)),
    Kind("saved in float64", misfit(bert, lambda w: {n: a.astype(np.float64) for n, a in w.items()}), "dtype-differs", "another precision", "--dtype float32", ("contract",)),
    Kind("norms in half precision, too", misfit(lambda: {n: a if "Norm" in n else a.astype(np.float16) for n, a in bert().items()},
         lambda w: {n: a.astype(np.float16) for n, a in w.items()}), "dtype-differs", "another precision", "cast", ("contract",)),
    Kind("quantised, scales missing", misfit(lambda: with_scales(bert()), lambda w: without(w, "_scale")), "tensor-missing", "without its scales"),
    Kind("quantised, the target is not", misfit(bert, with_scales), "tensor-unexpected", "quantised weight"),
    Kind("plain, the target is quantised", misfit(lambda: with_scales(bert()), lambda _: bert()), "tensor-missing", "the target is quantised"),
    Kind("one shard of several", lone_shard, "tensor-missing", "one shard of several", "check it --target"),
    Kind("everything at once", misfit(bert, lambda w: prefixed("module.")({n: a.astype(np.float16) for n, a in w.items()} | {"bert.embeddings.position_ids": np.arange(48)[None]})),
         "names-differ", "DataParallel", "--dtype float32", ("contract",)),
)
FILES = (
    Kind("a shard missing", folder(lambda f: shards(f)[1].unlink()), "shard-missing", "not there"),
    Kind("an index that names a ghost", folder(index(lambda i: i["weight_map"].update(ghost=next(iter(i["weight_map"].values()))))), "not-in-shard", "ghost", "-"),
    Kind("a tensor that the index does not list", folder(index(lambda i: i["weight_map"].pop("model.norm.weight"))), "not-in-index", "index", "convert it it-fitted/"),
    Kind("a total size that is stale", folder(index(lambda i: i["metadata"].update(total_size=1))), "total-size-mismatch", "size", "convert it it-fitted/"),
    Kind("a second copy in another shard", folder(second_copy), "shadowed-copy", "copy", "convert it it-fitted/"),
    Kind("an index that points outside", folder(index(lambda i: i["weight_map"].update(x="../base.safetensors"))), "outside-folder", ".."),
    Kind("half a shard", folder(lambda f: shards(f)[1].write_bytes(HALF(shards(f)[1].read_bytes()))), "truncated", "bytes"),
    Kind("a pointer in place of a shard", folder(lambda f: shards(f)[0].write_bytes(POINTER)), "lfs-pointer", "git-LFS"),
    Kind("a quantization_config over plain weights", folder(lambda f: None, STALE), "stale-quantization", "quantised", "it-fitted.safetensors"),
    Kind("a config.json cut off", folder(lambda f: (f / "config.json").write_text('{"model_type": "lla')), "json-invalid", "JSON", "it-fitted.safetensors"),
    Kind("half a .safetensors", broken(HALF), "truncated", "bytes"),
    Kind("a .safetensors within its header", broken(lambda data: data[:100]), "truncated", "header"),
    Kind("half a .pt", broken(HALF, "it.pt"), "truncated", "incomplete"),
    Kind("half an .onnx's data", onnx(HALF), "truncated", "data"),
    Kind("an .onnx without its data", onnx(), "not-found", "external.onnx.data"),
    Kind("a .pt that ends in zeros", broken(lambda data: data[:600] + bytes(len(data) - 600), "it.pt"), "truncated", "incomplete"),
    Kind("a .safetensors that ends in zeros", broken(lambda data: data[:60_000] + bytes(len(data) - 60_000)), "all-zero", "never filled", "", READ),
    Kind("a shape that contradicts the data", broken(wrong_header), "size-mismatch", "bytes"),
    Kind("a header longer than it says", broken(shorter_header), "header-invalid", "header"),
    Kind("an archive that was deflated", rezipped(zipfile.ZIP_DEFLATED, "archive/"), "zip-deflated", "deflated", "convert it.pt"),
    Kind("an archive without its top folder", rezipped(zipfile.ZIP_STORED, ""), "zip-root", "folder", "convert it.pt"),
    Kind("bytes behind the archive", broken(lambda data: data + bytes(100) + b"x" * 50, "it.pt"), "bytes-unclaimed", "bytes", "convert it.pt"),
    Kind("a git-LFS pointer", content("it.safetensors", POINTER), "lfs-pointer", "438,000,000 bytes"),
    Kind("a web page", content("it.pt", PAGE), "web-page", "Sign in"),
    Kind("a server's refusal", content("it.bin", b"Entry not found"), "web-page", "refusal"),
    Kind("an empty file", content("it.pt", b""), "empty-file", "empty"),
    Kind("nothing but zeros", content("it.safetensors", bytes(5000)), "zero-filled", "zeros"),
    Kind("gzipped", gzipped, "compressed", "gzip", "-"),
    Kind("zipped", zipped, "not-a-checkpoint", "zip archive", "-"),
    Kind("a GGUF file", fixture("hostile/foreign/llama.gguf"), "format-unsupported", "GGUF"),
    Kind("a Keras file", fixture("hostile/foreign/model.h5"), "format-unsupported", "HDF5"),
    Kind("a TensorFlow Lite file", fixture("hostile/foreign/model.tflite"), "format-unsupported", "TensorFlow Lite"),
    Kind("a folder without weights", fixture("hostile/folders/no_weights"), "no-weights", "weights"),
)
VALUES = (
    Kind("NaN", ill(spoiled(np.nan)), "not-finite", "1 NaN", "", READ),
    Kind("infinity", ill(spoiled(np.inf)), "not-finite", "1 infinite", "", READ),
    Kind("a weight of zeros", ill(spoiled(0, every=True)), "all-zero", "never filled", "", READ),
    Kind("a weight of one number", ill(spoiled(0.5, every=True)), "constant", "never trained", "", READ),
    Kind("quantised without scales", ill(quantised), "scales-missing", "scales are missing"),
    Kind("an optimizer shipped along", torch_save(optimizer), "optimizer-shipped", "optimizer", "convert it.ckpt", ("health",)),
    Kind("names in a wrapper", ill(prefixed("module."), resnet), "names-wrapped", "'module.'", "strip:module."),
)
# fmt: on
KINDS = (*NAMES, *TENSORS, *FILES, *VALUES)
