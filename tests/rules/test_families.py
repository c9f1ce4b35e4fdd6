"""Presets on families of models: converted weights compute in transformers what they computed where they came from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit as ck
from ckptkit.rules.outcome import RulesError
from ckptkit.rules.ruleset import Rules
from tests.rules.families import FAMILIES, image, weights

ONE_WAY = {"efficientnet-timm-hf", "levit-timm-hf", "mobilenetv2-timm-hf"}  # stages become one list

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def saved(model: Any, folder: Path) -> ck.TensorGraph:
    """What transformers writes for a model: the names that checkpoints have, whatever its modules are called."""
    model.save_pretrained(folder)
    return ck.read(folder)


def made(spec: Any) -> Any:
    """A small model of transformers."""
    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    pytest.importorskip("torch", reason="needs the torch extra")
    transformers.logging.set_verbosity_error()
    cls, config, settings = spec
    return getattr(transformers, cls)(getattr(transformers, config)(**settings)).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_outputs(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    family = FAMILIES[name]
    model = made(family["model"])
    wanted = saved(model, tmp_path / "hf")
    save_file(weights(family["source"]), tmp_path / "source.safetensors")
    ck.convert(tmp_path / "source.safetensors", tmp_path / "new.safetensors", rules=[Rules.preset(name)])
    new = ck.read(tmp_path / "new.safetensors")
    assert {key: new[key].shape for key in new} == {key: wanted[key].shape for key in wanted}

    import torch

    (tmp_path / "new.safetensors").replace(tmp_path / "hf" / "model.safetensors")
    loaded, info = type(model).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        outputs = loaded.eval()(torch.from_numpy(image(family["size"])))
    found = getattr(outputs, family["read"]).numpy().ravel()
    assert np.abs(found - family["output"]).max() < 1e-4 * max(1, np.abs(found).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_and_back(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rules = Rules.preset(name)
    if name in ONE_WAY:
        with pytest.raises(RulesError) as caught:
            rules.reversed()
        assert caught.value.code == "rule-lossy"
        return
    source = weights(FAMILIES[name]["source"])
    save_file(source, tmp_path / "source.safetensors")
    there = rules.apply(ck.read(tmp_path / "source.safetensors")).graph
    back = rules.reversed().apply(there).graph
    extra = {"mask_token"} if name == "dinov2-hf" else set()
    assert set(back) - extra == set(source)
    assert all(back[key].tobytes() == source[key].tobytes() for key in source)
