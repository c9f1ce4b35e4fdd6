"""What the names of a checkpoint tell: which code wrote them, what they were wrapped in, how large the model is.

A scheme is a row of a table: a few names that together only that implementation uses, and where its sizes can
be read from shapes. Nothing is concluded from numbers alone; a checkpoint that fits no row has no scheme.
The rows follow the module names of torchvision, timm, transformers, diffusers and the models' own repositories.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ckptkit.core.tensor import Tensor

if TYPE_CHECKING:
    from ckptkit.targets.catalogue.recognition import Recognised

HF, TV, TIMM, ORIGINAL = "Hugging Face", "torchvision", "timm", "original"

# Prefixes that only wrappers add, at the start of every name or in the middle of some.
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
# Prefixes that may be wrappers or belong to the scheme: taken off only where that makes a scheme fit.
HOLDERS = ("model.", "net.", "network.", "backbone.", "encoder.", "base_model.", "student.", "teacher.")


@dataclass(frozen=True, slots=True)
class Naming:
    """What the names tell.

    Attributes:
        scheme: the architecture ("Llama"); "" if no scheme fits.
        family: whose names they are ("Hugging Face"); "" if no scheme fits.
        wrappers: prefixes to take off, outermost first, until the scheme's own names appear.
        sizes: what shapes settle, label → number ("layers", "width", "heads", "vocab", "classes", …).
        known: the published model it is, if every tensor but those of its outputs has the published shape.
    """

    scheme: str = ""
    family: str = ""
    wrappers: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    known: "Recognised | None" = None


class Scheme(NamedTuple):
    """One row. `{}` in a mark is a layer's number: the mark must exist for 0, and layers are counted by it.

    Attributes:
        name, family: as in `Naming`.
        roots: prefixes the scheme itself has, depending on the head of the model; tried in turn.
        marks: names that must all exist under a root, separated by blanks.
        sizes: `label=name:axis`, separated by blanks; a name that starts with `/` does not stand under the root.
        absent: names that must not exist.
    """

    name: str
    family: str
    roots: tuple[str, ...]
    marks: str
    sizes: str = ""
    absent: str = ""


_LM = ("model.", "", "model.language_model.", "language_model.model.")
_LLAMA = "width=norm.weight:0 vocab=embed_tokens.weight:0"
_ENCODER = "width=embeddings.word_embeddings.weight:1 vocab=embeddings.word_embeddings.weight:0"
_ATTENTION = "layers.{}.self_attn"

# fmt: off
SCHEMES: tuple[Scheme, ...] = (
    # Decoders with Llama-like names: the most particular first.
    Scheme("DeepSeek-V2/V3", HF, _LM, f"{_ATTENTION}.kv_a_proj_with_mqa.weight", _LLAMA),
    Scheme("gpt-oss", HF, _LM, f"{_ATTENTION}.sinks layers.0.mlp.router.weight", _LLAMA),
    Scheme("Mixtral", HF, _LM, "layers.{}.block_sparse_moe.gate.weight norm.weight",
           f"{_LLAMA} experts=layers.0.block_sparse_moe.gate.weight:0"),
    Scheme("Mixtral", HF, _LM, f"{_ATTENTION}.q_proj.weight layers.0.mlp.gate.weight layers.0.mlp.experts.gate_up_proj",
           f"{_LLAMA} experts=layers.0.mlp.gate.weight:0", absent="layers.0.self_attn.q_norm.weight layers.0.self_attn.q_proj.bias "
           "layers.0.mlp.shared_expert_gate.weight"),
    Scheme("Qwen3-MoE", HF, _LM, f"{_ATTENTION}.q_norm.weight layers.0.mlp.gate.weight", f"{_LLAMA} experts=layers.0.mlp.gate.weight:0"),
    Scheme("Qwen2-MoE", HF, _LM, "layers.{}.mlp.shared_expert_gate.weight", f"{_LLAMA} experts=layers.0.mlp.gate.weight:0"),
    Scheme("Gemma 3", HF, _LM, "layers.{}.pre_feedforward_layernorm.weight layers.0.self_attn.q_norm.weight", _LLAMA),
    Scheme("Gemma 2", HF, _LM, "layers.{}.pre_feedforward_layernorm.weight", _LLAMA),
    Scheme("OLMo 2", HF, _LM, "layers.{}.post_feedforward_layernorm.weight layers.0.self_attn.q_norm.weight", _LLAMA),
    Scheme("Qwen3", HF, _LM, f"{_ATTENTION}.q_norm.weight layers.0.mlp.gate_proj.weight layers.0.input_layernorm.weight", _LLAMA),
    Scheme("Phi-3", HF, _LM, f"{_ATTENTION}.qkv_proj.weight layers.0.mlp.gate_up_proj.weight", _LLAMA),
    Scheme("Phi", HF, _LM, f"{_ATTENTION}.dense.weight layers.0.mlp.fc1.weight final_layernorm.weight",
           "width=final_layernorm.weight:0 vocab=embed_tokens.weight:0"),
    Scheme("Qwen2", HF, _LM, f"{_ATTENTION}.q_proj.bias layers.0.mlp.gate_proj.weight layers.0.input_layernorm.weight", _LLAMA,
           absent=f"{_ATTENTION}.o_proj.bias"),
    Scheme("Llama", HF, _LM, f"{_ATTENTION}.q_proj.weight layers.0.mlp.gate_proj.weight layers.0.input_layernorm.weight", _LLAMA),
    Scheme("Llama", "Meta", ("",), "layers.{}.attention.wq.weight layers.0.feed_forward.w1.weight tok_embeddings.weight",
           "width=norm.weight:0 vocab=tok_embeddings.weight:0"),
    # Other decoders.
    Scheme("GPT-2", HF, ("transformer.", ""), "h.{}.attn.c_attn.weight wte.weight wpe.weight",
           "width=ln_f.weight:0 vocab=wte.weight:0 positions=wpe.weight:0"),
    Scheme("GPT-NeoX", HF, ("gpt_neox.", ""), "layers.{}.attention.query_key_value.weight embed_in.weight",
           "width=embed_in.weight:1 vocab=embed_in.weight:0"),
    Scheme("GPT-Neo", HF, ("transformer.", ""), "h.{}.attn.attention.q_proj.weight wte.weight", "width=ln_f.weight:0 vocab=wte.weight:0"),
    Scheme("GPT-J", HF, ("transformer.", ""), "h.{}.attn.q_proj.weight h.0.mlp.fc_in.weight wte.weight",
           "width=ln_f.weight:0 vocab=wte.weight:0"),
    Scheme("BLOOM", HF, ("transformer.", ""), "h.{}.self_attention.query_key_value.weight word_embeddings_layernorm.weight",
           "width=ln_f.weight:0 vocab=word_embeddings.weight:0"),
    Scheme("Falcon", HF, ("transformer.", ""), "h.{}.self_attention.query_key_value.weight word_embeddings.weight",
           "width=ln_f.weight:0 vocab=word_embeddings.weight:0"),
    Scheme("OPT", HF, ("model.decoder.", "decoder."), "layers.{}.self_attn.q_proj.weight layers.0.fc1.weight embed_positions.weight embed_tokens.weight",
           "width=embed_positions.weight:1 vocab=embed_tokens.weight:0", absent="layers.0.encoder_attn.q_proj.weight"),
    Scheme("Mamba", HF, ("backbone.", ""), "layers.{}.mixer.A_log layers.0.mixer.conv1d.weight embeddings.weight",
           "width=norm_f.weight:0 vocab=embeddings.weight:0"),
    Scheme("Mamba", ORIGINAL, ("backbone.", ""), "layers.{}.mixer.A_log layers.0.mixer.conv1d.weight embedding.weight",
           "width=norm_f.weight:0 vocab=embedding.weight:0"),
    Scheme("RWKV", HF, ("rwkv.", ""), "blocks.{}.attention.time_decay embeddings.weight", "width=embeddings.weight:1 vocab=embeddings.weight:0"),
    # Encoders and encoder-decoders.
    Scheme("ALBERT", HF, ("albert.", ""), "encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight", _ENCODER),
    Scheme("DistilBERT", HF, ("distilbert.", ""), "transformer.layer.{}.attention.q_lin.weight embeddings.word_embeddings.weight", _ENCODER),
    Scheme("DeBERTa-v2", HF, ("deberta.", ""), "encoder.layer.{}.attention.self.query_proj.weight embeddings.word_embeddings.weight", _ENCODER),
    Scheme("RoBERTa", HF, ("roberta.",), "encoder.layer.{}.attention.self.query.weight embeddings.word_embeddings.weight", _ENCODER),
    Scheme("ELECTRA", HF, ("electra.",), "encoder.layer.{}.attention.self.query.weight embeddings.word_embeddings.weight", _ENCODER),
    Scheme("BERT", HF, ("bert.", ""), "encoder.layer.{}.attention.self.query.weight embeddings.word_embeddings.weight", _ENCODER),
    Scheme("T5", HF, ("",), "encoder.block.{}.layer.0.SelfAttention.q.weight",
           "width=encoder.final_layer_norm.weight:0 vocab=shared.weight:0 "
           "heads=encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight:1"),
    Scheme("Whisper", HF, ("model.", ""), "encoder.layers.{}.self_attn.q_proj.weight encoder.conv1.weight decoder.embed_positions.weight",
           "width=encoder.conv1.weight:0 vocab=decoder.embed_tokens.weight:0"),
    Scheme("Whisper", "OpenAI", ("",), "encoder.blocks.{}.attn.query.weight decoder.token_embedding.weight",
           "width=encoder.conv1.weight:0 vocab=decoder.token_embedding.weight:0"),
    Scheme("BART", HF, ("model.", ""), "encoder.layers.{}.self_attn.q_proj.weight decoder.layers.0.encoder_attn.q_proj.weight "
           "encoder.layernorm_embedding.weight", "width=encoder.layernorm_embedding.weight:0 vocab=shared.weight:0"),
    Scheme("Marian", HF, ("model.", ""), "encoder.layers.{}.self_attn.q_proj.weight decoder.layers.0.encoder_attn.q_proj.weight shared.weight",
           "width=shared.weight:1 vocab=shared.weight:0"),
    Scheme("wav2vec 2.0", HF, ("wav2vec2.", "hubert.", ""), "encoder.layers.{}.attention.q_proj.weight "
           "feature_extractor.conv_layers.0.conv.weight feature_projection.projection.weight",
           "width=feature_projection.projection.weight:0"),
    # Vision and more.
    Scheme("CLIP", HF, ("",), "vision_model.encoder.layers.{}.self_attn.q_proj.weight text_model.encoder.layers.0.self_attn.q_proj.weight",
           "width=vision_model.embeddings.position_embedding.weight:1 vocab=text_model.embeddings.token_embedding.weight:0"),
    Scheme("CLIP", "OpenAI", ("",), "visual.transformer.resblocks.{}.attn.in_proj_weight token_embedding.weight text_projection",
           "width=visual.class_embedding:0 vocab=token_embedding.weight:0"),
    Scheme("ViT", HF, ("vit.", "deit.", ""), "encoder.layer.{}.attention.attention.query.weight embeddings.patch_embeddings.projection.weight "
           "layernorm.weight", "width=layernorm.weight:0 patch=embeddings.patch_embeddings.projection.weight:2 classes=/classifier.weight:0"),
    Scheme("ViT", HF, ("vit.", "deit.", ""), "layers.{}.attention.q_proj.weight embeddings.patch_embeddings.projection.weight "
           "layernorm.weight", "width=layernorm.weight:0 patch=embeddings.patch_embeddings.projection.weight:2 classes=/classifier.weight:0"),
    Scheme("Swin", HF, ("swin.", ""), "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table "
           "embeddings.patch_embeddings.projection.weight", "classes=/classifier.weight:0"),
    Scheme("DINOv2", HF, ("dinov2.", ""), "encoder.layer.{}.layer_scale1.lambda1 embeddings.cls_token", "width=layernorm.weight:0"),
    Scheme("ResNet", HF, ("resnet.", ""), "embedder.embedder.convolution.weight encoder.stages.0.layers.0.layer.0.convolution.weight"),
    Scheme("Segment Anything", ORIGINAL, ("",), "image_encoder.blocks.{}.attn.qkv.weight prompt_encoder.no_mask_embed.weight",
           "width=image_encoder.patch_embed.proj.weight:0"),
    Scheme("Stable Diffusion", "CompVis", ("",), "model.diffusion_model.input_blocks.0.0.weight model.diffusion_model.out.2.weight"),
    Scheme("UNet", "diffusers", ("",), "conv_in.weight down_blocks.0.resnets.0.conv1.weight mid_block.resnets.0.conv1.weight time_embedding.linear_1.weight",
           "width=conv_in.weight:0"),
    Scheme("AutoencoderKL", "diffusers", ("",), "encoder.conv_in.weight encoder.down_blocks.0.resnets.0.conv1.weight decoder.conv_out.weight"),
    Scheme("Flux", "diffusers", ("",), "transformer_blocks.{}.attn.add_q_proj.weight single_transformer_blocks.0.proj_mlp.weight x_embedder.weight",
           "width=x_embedder.weight:0"),
    Scheme("YOLO", "ultralytics", ("model.", "model.model.", ""), "0.conv.weight 1.conv.weight 0.bn.weight 2.cv1.conv.weight"),
    Scheme("ViT", TV, ("",), "encoder.layers.encoder_layer_{}.self_attention.in_proj_weight conv_proj.weight",
           "width=conv_proj.weight:0 patch=conv_proj.weight:2 classes=heads.head.weight:0"),
    Scheme("DETR", ORIGINAL, ("",), "backbone.0.body.conv1.weight transformer.encoder.layers.{}.self_attn.in_proj_weight "
           "transformer.decoder.layers.0.multihead_attn.in_proj_weight query_embed.weight", "classes=class_embed.weight:0"),
    Scheme("DETR", HF, ("model.", ""), "encoder.layers.{}.self_attn.q_proj.weight decoder.layers.0.self_attn.q_proj.weight "
           "backbone.conv_encoder.model.conv1.weight query_position_embeddings.weight", "classes=/class_labels_classifier.weight:0"),
    Scheme("R-CNN", TV, ("",), "backbone.body.conv1.weight rpn.head.cls_logits.weight roi_heads.box_head.fc6.weight",
           "classes=roi_heads.box_predictor.cls_score.weight:0"),
    Scheme("SSD", TV, ("",), "backbone.scale_weight backbone.features.0.weight head.classification_head.module_list.0.weight"),
    Scheme("ELMo", "AllenNLP", ("",), "_elmo_lstm._token_embedder._char_embedding_weights"),
    Scheme("ResNet", TV, ("",), "conv1.weight bn1.weight layer1.{}.conv1.weight layer2.0.conv1.weight layer3.0.conv1.weight layer4.0.conv1.weight",
           "classes=fc.weight:0"),
    Scheme("DenseNet", TV, ("",), "features.conv0.weight features.denseblock1.denselayer1.conv1.weight", "classes=classifier.weight:0"),
    Scheme("AlexNet", TV, ("",), "features.0.weight features.3.weight features.6.weight features.8.weight features.10.weight classifier.1.weight "
           "classifier.4.weight classifier.6.weight", "classes=classifier.6.weight:0", absent="features.2.weight"),
    Scheme("VGG", TV, ("",), "features.0.weight classifier.0.weight classifier.3.weight classifier.6.weight", "classes=classifier.6.weight:0"),
    Scheme("VGG", TIMM, ("",), "features.0.weight pre_logits.fc1.weight", "classes=head.fc.weight:0"),
    Scheme("DenseNet", TV, ("",), "features.conv0.weight features.denseblock1.denselayer1.conv.1.weight", "classes=classifier.weight:0"),
    Scheme("SqueezeNet", TV, ("",), "features.0.weight features.3.squeeze.weight features.3.expand1x1.weight", "classes=classifier.1.weight:0"),
    Scheme("GoogLeNet", TV, ("",), "conv1.conv.weight inception3a.branch1.conv.weight", "classes=fc.weight:0"),
    Scheme("Inception v3", TV, ("",), "Conv2d_1a_3x3.conv.weight Mixed_5b.branch1x1.conv.weight", "classes=fc.weight:0"),
    Scheme("MobileNetV3", TV, ("",), "features.0.0.weight features.1.block.0.0.weight classifier.3.weight", "classes=classifier.3.weight:0"),
    Scheme("MobileNetV2", TV, ("",), "features.0.0.weight features.1.conv.0.0.weight features.18.0.weight", "classes=classifier.1.weight:0"),
    Scheme("EfficientNet", TV, ("",), "features.0.0.weight features.1.0.block.0.0.weight features.1.0.block.1.fc1.weight", "classes=classifier.1.weight:0"),
    Scheme("ConvNeXt", TV, ("",), "features.0.0.weight features.1.0.block.0.weight features.1.0.layer_scale", "classes=classifier.2.weight:0"),
    Scheme("Swin", TV, ("",), "features.0.0.weight features.1.0.attn.relative_position_bias_table", "classes=head.weight:0"),
    Scheme("ViT", TIMM, ("",), "blocks.{}.attn.qkv.weight blocks.0.mlp.fc1.weight patch_embed.proj.weight cls_token",
           "width=patch_embed.proj.weight:0 patch=patch_embed.proj.weight:2 classes=head.weight:0", absent="mask_token"),
    Scheme("DINOv2", ORIGINAL, ("",), "blocks.{}.attn.qkv.weight blocks.0.ls1.gamma patch_embed.proj.weight mask_token", "width=patch_embed.proj.weight:0"),
    Scheme("Swin", TIMM, ("",), "layers.0.blocks.0.attn.relative_position_bias_table patch_embed.proj.weight", "classes=head.fc.weight:0"),
    Scheme("ConvNeXt", TIMM, ("",), "stem.0.weight stages.0.blocks.0.conv_dw.weight stages.0.blocks.0.gamma", "classes=head.fc.weight:0"),
    Scheme("EfficientNet", TIMM, ("",), "conv_stem.weight blocks.0.0.conv_dw.weight conv_head.weight", "classes=classifier.weight:0"),
)
# fmt: on

# Blocks of each stage, and whether they are bottlenecks → depth of torchvision's ResNets.
_RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def naming(tensors: Mapping[str, Tensor]) -> Naming:
    """What the names (and, for sizes, the shapes) of a checkpoint tell."""
    if not tensors:
        return Naming()
    wrappers: list[str] = []  # at the start of every name, outermost first
    inside: list[str] = []
    text = "\n".join(tensors)  # one search instead of one per name
    for inner in INNER:
        if "." + inner in text:
            tensors = {name.replace("." + inner, "."): tensor for name, tensor in tensors.items()}
            inside.append("…." + inner)
    while wrapper := next((w for w in WRAPPERS if _all_start(tensors, w)), None):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
        wrappers.append(wrapper)
    if ".qweight" in text:
        packed = {
            n.removesuffix("qweight") + "weight": t for n, t in tensors.items() if n.endswith(".qweight")
        }
        tensors = {**tensors, **packed}
    sure = (*wrappers, *inside)
    for _ in range(4):
        found = _fit(tensors)
        if found is not None:
            from ckptkit.targets.catalogue.recognition import recognise

            scheme, root = found
            name = scheme.name + _variant(scheme, tensors)
            known = recognise(f"{scheme.name}/{scheme.family}", tensors)
            return Naming(name, scheme.family, (*wrappers, *inside), _sizes(scheme, root, tensors), known)
        holder = next((h for h in (*HOLDERS, *WRAPPERS) if _all_start(tensors, h)), None)
        if holder is None:
            break
        tensors = {name.removeprefix(holder): tensor for name, tensor in tensors.items()}
        wrappers.append(holder)
    return _ranked(tensors, sure)


def _ranked(tensors: Mapping[str, Tensor], wrappers: tuple[str, ...]) -> Naming:
    """What the names of a rank set tell, which begin with the rank. Of its sizes only the layers are of the whole."""
    ranks = {rank for rank, dot, _ in (name.partition(".") for name in tensors) if dot}
    if len(ranks) < 2 or ranks != set(map(str, range(len(ranks)))):
        return Naming(wrappers=wrappers)
    first = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("0.")}
    found = _fit(first)
    if found is None:
        return Naming(wrappers=wrappers)
    scheme, root = found
    layers = [size for size in _sizes(scheme, root, first) if size[0] == "layers"]
    return Naming(scheme.name, scheme.family, wrappers, (("ranks", len(ranks)), *layers))


def unwrapped(name: str) -> str:
    """The name without any of the prefixes that wrappers and holders add, for finding what a user meant."""
    for inner in INNER:
        name = name.replace("." + inner, ".")
    while prefix := next((p for p in (*WRAPPERS, *HOLDERS) if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def _all_start(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return all(name.startswith(prefix) and len(name) > len(prefix) for name in tensors)


def _fit(tensors: Mapping[str, Tensor]) -> tuple[Scheme, str] | None:
    """The first scheme whose marks are all there, and its root."""
    for scheme in SCHEMES:
        marks, absent = (text.replace("{}", "0").split() for text in (scheme.marks, scheme.absent))
        for root in scheme.roots:
            if all(root + mark in tensors for mark in marks) and not any(root + n in tensors for n in absent):
                return scheme, root
    return None


def _sizes(scheme: Scheme, root: str, tensors: Mapping[str, Tensor]) -> tuple[tuple[str, int], ...]:
    """What the shapes settle, layers first."""
    sizes: list[tuple[str, int]] = []
    layer = next((mark for mark in scheme.marks.split() if "{}" in mark), None)
    if layer is not None and scheme.name != "ResNet":
        sizes.append(("layers", _count(root + layer, tensors)))
    for item in scheme.sizes.split():
        label, _, place = item.partition("=")
        name, _, axis = place.partition(":")
        tensor = tensors.get(name[1:] if name.startswith("/") else root + name)
        if tensor is not None and len(tensor.shape) > int(axis):
            sizes.append((label, tensor.shape[int(axis)]))
    return (*sizes, *_heads(f"{root}layers.0.self_attn.", tensors))


def _count(pattern: str, tensors: Mapping[str, Tensor]) -> int:
    """How many layers there are: consecutive numbers from 0."""
    number = 0
    while pattern.replace("{}", str(number)) in tensors:
        number += 1
    return number


def _heads(attention: str, tensors: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Heads, where a tensor of one head's width stands beside the projections."""
    parts = ("q_proj.weight", "k_proj.weight", "q_norm.weight", "rotary_emb.inv_freq")
    query, key, norm, rotary = (tensors.get(attention + part) for part in parts)
    width = norm.size if norm else 2 * rotary.size if rotary else 0
    if not width or not query or not key or len(query.shape) != 2 or len(key.shape) != 2:
        return []
    heads, groups = query.shape[0] // width, key.shape[0] // width
    if heads * width != query.shape[0] or groups * width != key.shape[0] or heads < 2:
        return []
    return [("heads", heads), ("key/value heads", groups)] if groups != heads else [("heads", heads)]


def _variant(scheme: Scheme, tensors: Mapping[str, Tensor]) -> str:
    """The depth that is part of a model's name."""
    if (scheme.name, scheme.family) == ("ResNet", TV):
        blocks = [_count(f"layer{stage}.{{}}.conv1.weight", tensors) for stage in (1, 2, 3, 4)]
        depth = _RESNETS.get((tuple(blocks), "layer1.0.conv3.weight" in tensors))
        return f"-{depth}" if depth else ""
    if (scheme.name, scheme.family) == ("VGG", TV):
        weights = sum(bool(re.fullmatch(r"features\.\d+\.weight", name)) for name in tensors)
        batch_norm = sum(bool(re.fullmatch(r"features\.\d+\.running_mean", name)) for name in tensors)
        return f"-{weights - batch_norm + 3}" + (" with BatchNorm" if batch_norm else "")
    return ""
