"""The catalogue against transformers: models made without memory, with the names in which they are saved."""

from collections.abc import Mapping
from typing import Any

import pytest

import ckptkit as ck
from ckptkit.core.dtypes import dtype
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.targets import catalogue

ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
BASIC = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
LLAMA3 = {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8}
TINY = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4}
QWEN = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2,
}  # fmt: skip
QWEN3 = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8,
}  # fmt: skip
MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
TURBO = {
    "d_model": 1280, "encoder_layers": 32, "decoder_layers": 4, "encoder_attention_heads": 20, "num_mel_bins": 128,
    "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120, "vocab_size": 51866,
}  # fmt: skip
FLAN = {
    "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}  # fmt: skip
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

# target, class of transformers, sizes that are not those of its configuration by default
MODELS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("bert-base-uncased", "BertForPreTraining", {}),
    ("bert-base-uncased", "BertForMaskedLM", {}),
    ("bert-base-uncased", "BertModel", {}),
    ("bert-base-uncased", "BertForSequenceClassification", {"num_labels": 7}),
    ("bert-base-uncased", "BertForQuestionAnswering", {}),
    ("bert-large-cased", "BertForMaskedLM", {**LARGE, "vocab_size": 28996}),
    ("distilbert-base-uncased", "DistilBertForMaskedLM", {}),
    ("distilbert-base-uncased", "DistilBertModel", {}),
    ("distilbert-base-uncased", "DistilBertForSequenceClassification", {}),
    ("roberta-base", "RobertaForMaskedLM", ROBERTA),
    ("roberta-base", "RobertaModel", ROBERTA),
    ("roberta-base", "RobertaForSequenceClassification", ROBERTA),
    ("xlm-roberta-large", "XLMRobertaForMaskedLM", {**LARGE, **ROBERTA, "vocab_size": 250002}),
    ("gpt2", "GPT2LMHeadModel", {}),
    ("gpt2", "GPT2Model", {}),
    ("gpt2-medium", "GPT2LMHeadModel", MEDIUM),
    ("t5-small", "T5ForConditionalGeneration", {}),
    ("flan-t5-base", "T5ForConditionalGeneration", FLAN),
    ("llama-7b", "LlamaForCausalLM", {}),
    ("llama-3-8b", "LlamaForCausalLM", LLAMA3),
    ("tinyllama-1.1b", "LlamaForCausalLM", TINY),
    ("mistral-7b", "MistralForCausalLM", {}),
    ("mixtral-8x7b", "MixtralForCausalLM", {}),
    ("qwen2-0.5b", "Qwen2ForCausalLM", QWEN),
    ("qwen3-0.6b", "Qwen3ForCausalLM", QWEN3),
    ("resnet50@hf", "ResNetForImageClassification", {"num_labels": 1000}),
    ("resnet18@hf", "ResNetForImageClassification", {"num_labels": 1000, **BASIC}),
    ("vit-base-patch16-224@hf", "ViTForImageClassification", {"num_labels": 1000}),
    ("vit-base-patch16-224@hf", "ViTModel", {}),
    (
        "vit-large-patch16-384@hf",
        "ViTForImageClassification",
        {**LARGE, "num_labels": 1000, "image_size": 384},
    ),
    ("swin-t@hf", "SwinForImageClassification", {"num_labels": 1000}),
    ("clip-vit-base-patch32@hf", "CLIPModel", {}),
    ("whisper-tiny@hf", "WhisperForConditionalGeneration", {}),
    ("whisper-large-v3-turbo@hf", "WhisperForConditionalGeneration", TURBO),
)


def made(name: str, sizes: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    model = getattr(transformers, name)
    with torch.device("meta"):
        module = model(model.config_class(**sizes))
    return module, module.state_dict()


def graph(state: Mapping[str, Any]) -> TensorGraph:
    rows = {name: Tensor(dtype(str(t.dtype)[6:]), tuple(t.shape)) for name, t in state.items()}
    return TensorGraph(rows, Origin("x", "safetensors"))


@pytest.mark.parametrize(("target", "name", "sizes"), MODELS, ids=[f"{t}-{n}" for t, n, _ in MODELS])
def test_what_transformers_saves_fits(target: str, name: str, sizes: Mapping[str, Any]) -> None:
    module, state = made(name, sizes)
    saving = pytest.importorskip("transformers.core_model_loading", reason="needs transformers 5")
    saved = graph(saving.revert_weight_conversion(module, dict(state)))
    report = ck.check(saved, target)
    assert (report.summary, report.findings) == ("fits", ())
    assert report.fitting == report.tensors == report.expected
    known = ck.recognise(saved)
    wanted = catalogue.find(target.partition("@")[0])
    assert known is not None
    assert wanted is not None
    assert known.model.title == wanted.title
    assert [found for found in known.differences if found.published is not None] == []


@pytest.mark.parametrize(
    ("target", "name"),
    [("vit-base-patch16-224@hf-5", "ViTModel"), ("mixtral-8x7b@hf-5", "MixtralForCausalLM")],
)
def test_what_transformers_holds_in_memory_fits(target: str, name: str) -> None:
    _, state = made(name, {})
    if ck.check(graph(state), f"{target.partition('@')[0]}@hf").fits:
        pytest.skip("needs transformers 5")
    assert ck.check(graph(state), target).fits
