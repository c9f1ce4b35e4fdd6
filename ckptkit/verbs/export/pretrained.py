"""A Hugging Face folder as the source of an export: the module and its inputs come from config.json.

Text: `input_ids`, `attention_mask`, and `token_type_ids` where the model has types; batch and sequence are free.
Images: `pixel_values` of the size that the configuration states; the batch is free. Decoders run without a cache.
Encoder-decoders, models of several parts and those of sound are not guessed at. Source: transformers 5.23.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import TensorGraph
from ckptkit.format import strict_json
from ckptkit.match.fit.compare import fit
from ckptkit.match.proof.signature import Input
from ckptkit.targets import made, pretrained

_TOKENS = 8  # in the inputs that are traced


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A module with its weights, what it is called, and what it takes."""

    module: Any
    label: str
    inputs: tuple[Input, ...]
    dynamic: Mapping[str, str]


def config_of(path: str) -> str | None:
    """The config.json of a folder, or beside a file, if it is one of transformers; None if there is none."""
    folder = path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
    return os.path.join(folder, made.CONFIG) if made.is_config(folder) else None


def from_config(path: str, weights: TensorGraph, inputs: Sequence[Input]) -> Pretrained:
    """The model of a config.json, with these weights. `inputs` stand in for those of the configuration.

    The model is first made without weights in a process of its own, so that a configuration that asks for more than
    the weights are fails there. Raises CkptError `module-misfit`, `inputs-unknown`, and as `made.of_config` does.
    """
    target = made.of_config(path)
    compared = fit(weights, target)
    tied = {name for group in target.ties if not compared.tensors.keys().isdisjoint(group) for name in group}
    missing = [name for name in compared.missing if name not in tied]
    wrong = [*missing, *(m.name for m in compared.mismatched if m.what == "shape")]
    if wrong:
        hint = f"ckptkit check {weights.origin.path} --target {path}"
        raise CkptError("module-misfit", f"the weights do not fit: {', '.join(wrong[:8])}", path, hint)
    config = strict_json.load(File.at(path), DEFAULT_BUDGETS.index_bytes)
    module = pretrained.load(config, weights, path)
    label = f"{type(module).__name__} of {path}"
    if inputs:
        return Pretrained(module, label, tuple(inputs), {})
    taken = _inputs(module, path)
    dynamic = {f"{one.name}.0": "batch" for one in taken}
    dynamic |= {f"{one.name}.1": "sequence" for one in taken if len(one.shape) == 2}
    return Pretrained(module, label, taken, dynamic)


def _inputs(module: Any, where: str) -> tuple[Input, ...]:
    from inspect import signature

    main = module.main_input_name
    config = module.config
    taken = signature(module.forward).parameters
    parts = [name for name in config.sub_configs if getattr(config, name, None) is not None]
    if getattr(config, "is_encoder_decoder", False):
        raise _unknown("an encoder-decoder is two graphs, and runs in a loop", where, main)
    if parts:
        raise _unknown(f"a model of several parts ({', '.join(parts)})", where, main)
    if main == "input_ids":
        length = getattr(config, "max_position_embeddings", None)
        shape = (2, min(_TOKENS, length) if isinstance(length, int) and length > 0 else _TOKENS)
        names = ["input_ids", "attention_mask"]
        if (getattr(config, "type_vocab_size", None) or 0) > 1:
            names.append("token_type_ids")
        return tuple(Input(name, "int64", shape) for name in names if name in taken)
    if main == "pixel_values":
        size = getattr(config, "image_size", None)
        sizes = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(config, "num_channels", 3)
        if len(sizes) != 2 or not all(isinstance(n, int) and n > 0 for n in (*sizes, channels)):
            raise _unknown("it states no image_size", where, f"{main}:float32[2,3,224,224]")
        dtype = str(module.dtype).removeprefix("torch.")
        return (Input(main, dtype, (2, channels, *sizes)),)
    raise _unknown(f"it takes {main}, whose shape the configuration does not tell", where, main)


def _unknown(why: str, where: str, example: str) -> CkptError:
    shown = example if ":" in example else f"{example}:DTYPE[SIZES]"
    hint = f"--input '{shown}' for each input of forward, or --module package.module:factory"
    return CkptError("inputs-unknown", f"its inputs are not known: {why}", where, hint)
