"""The presets on real conversions: every tensor of the target bit for bit, and back."""

from pathlib import Path

import pytest

from ckptkit.core.graph import TensorGraph
from ckptkit.format import read
from ckptkit.rules.ruleset import Rules, preset_text, presets
from tests.support import ROOT

# preset → folder of the answers, values that the files do not hold, sources that cannot come back
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


@pytest.fixture(scope="module")
def mapping() -> Path:
    folder = ROOT.parent / "shared" / "mapping"
    if not folder.is_dir():
        pytest.skip("the conversions are not here")
    return folder


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_real_conversion_bit_for_bit_and_back(name: str, mapping: Path) -> None:
    folder, let = CONVERSIONS[name]
    source = read(mapping / folder / "src.safetensors")
    target = read(mapping / folder / "dst.safetensors")
    rules = Rules.preset(name)

    forward = rules.apply(source, **let)
    assert set(forward.graph) == set(target)
    assert differing(forward.graph, target, set(target)) == []

    back = rules.reversed().apply(target, **let).graph
    assert set(back) == set(source) - set(forward.dropped)
    assert differing(back, source, set(back)) == []


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_it_is_and_writes_itself_out(name: str) -> None:
    rules = Rules.preset(name)
    assert rules.about
    assert preset_text(name).startswith("ckptkit-rules: 1\n")
    assert Rules.parse(rules.text(), name).text() == rules.text()
