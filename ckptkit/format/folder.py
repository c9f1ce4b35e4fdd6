"""A Hugging Face folder read as one checkpoint, and the side files that travel with it.

Which weights count, first match wins: `model.safetensors`, its index, `pytorch_model.bin`, its index (the
`diffusion_pytorch_model` names alike), a numbered set without an index, then the only weights file of any other
name, or the only rank set. A variant (`model.fp16.safetensors`) is taken only when it is asked for. Adapters, the
components of a diffusers pipeline and the ranks of a sharded optimizer are never taken silently; what is passed over
is a note. Sources: transformers 5.23 and diffusers file names.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.format import listing, ranks, registry, shards
from ckptkit.format.companions import companions, is_side_file, is_side_folder, others

__all__ = ["companions", "others", "read_folder", "strangers", "weights_name"]

_STEMS = (("model", "diffusion_pytorch_model"), ("pytorch_model", "diffusion_pytorch_model"))
_SUFFIXES = (".safetensors", ".bin")
_WEIGHTS = re.compile(
    r".+\.(?:safetensors|bin|pt|pth|ckpt|onnx|h5|msgpack|ot|gguf|mlmodel|tflite|index(?:\.[\w-]+)?\.json)"
)
_READABLE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx")
_ADAPTER = re.compile(r"adapter_model\.(?:safetensors|bin)|pytorch_lora_weights\.(?:safetensors|bin)")
_ZERO = re.compile(r"mp_rank_\d\d.*\.pt|.*zero_pp_rank_\d+.*\.pt")  # DeepSpeed's, flat or in parts
# What trainers leave beside the weights.
_TRAINING = re.compile(
    r"training_args\.bin|optimizer\.(?:pt|bin)|scheduler\.(?:pt|bin)|scaler\.pt|rng_state.*\.pth"
)
_VARIANT = re.compile(
    r"(?P<stem>[^.]+)\.(?P<variant>[\w-]+)(?:-\d{5}-of-\d{5})?(?P<suffix>\.safetensors|\.bin)"
)


def read_folder(path: str, options: ReadOptions) -> TensorGraph:
    """Read the checkpoint that a folder holds.

    Raises CkptError `no-weights`, `ambiguous-weights`, `variant-missing`, `needs-a-component`, `rank-files` or
    `format-unsupported` where the folder does not hold one plain checkpoint, and whatever reading its files raises.
    """
    names = listing.files(path)
    _refuse_foreign(path, names)
    weights = [name for name in names if _WEIGHTS.fullmatch(name) and not _TRAINING.fullmatch(name)]
    choice = _choose(path, weights, options.variant)
    if choice.parallel:
        graph = ranks.read_ranks(path, choice.parallel, options)
    elif choice.numbered:
        graph = shards.read_set(path, choice.names, options)
    else:
        inner = os.path.join(path, choice.names[0])
        graph = registry.identify(File.at(inner)).load().read(inner, options)
    used = {os.path.basename(file.path) for file in graph.origin.files} | set(choice.names)
    passed = [name for name in weights if name not in used]
    passed += [name + "/" for name in ("original", "onnx") if os.path.isdir(os.path.join(path, name))]
    findings = list(graph.findings)
    if passed:
        message = f"other weights in the folder are passed over: {_some(passed)}"
        hint = "name one by its path, or with --variant, to read it instead"
        findings.append(Finding("passed-over", "note", choice.names[0], message, hint))
    details = {**graph.origin.details, "weights": choice.names[0]}
    origin = replace(graph.origin, path=path, details=details)
    return replace(graph, origin=origin, findings=tuple(findings))


def weights_name(format_name: str, source: TensorGraph | None = None) -> str:
    """The name that a format's weights get in a folder, where the libraries that load it look for them.

    A source that was the component of a diffusers pipeline keeps its stem.
    """
    read_from = "" if source is None else str(source.origin.details.get("weights", ""))
    if format_name in ("safetensors", "pytorch") and read_from.startswith("diffusion_pytorch_model"):
        return "diffusion_pytorch_model" + {"safetensors": ".safetensors", "pytorch": ".bin"}[format_name]
    if format_name == "pytorch":
        return "pytorch_model.bin"
    return "model" + registry.named(format_name).suffixes[0]


@dataclass(frozen=True, slots=True)
class _Choice:
    """The weights of a folder: one file or index, the files of a numbered set without an index, or those of ranks."""

    names: tuple[str, ...]
    numbered: bool = False
    parallel: Mapping[ranks.Rank, str] | None = None


def strangers(path: str, names: Iterable[str] = ()) -> list[str]:
    """What stands in a folder and belongs to no checkpoint: neither weights, nor side files, nor among `names`."""
    known = {name.partition("/")[0] for name in names} | {".gitattributes", ".DS_Store"}
    found = [name for name in listing.folders(path) if name not in known and not is_side_folder(name)]
    for name in listing.files(path):
        weights = _WEIGHTS.fullmatch(name) and not _TRAINING.fullmatch(name)
        if name not in known and not weights and not is_side_file(name):
            found.append(name)
    return found


def _choose(path: str, weights: list[str], variant: str | None) -> _Choice:
    present = set(weights)
    for suffix, stems in zip(_SUFFIXES, _STEMS, strict=True):
        for spellings in (_single, _indexes):
            found = [n for stem in stems for n in spellings(stem, suffix, variant) if n in present]
            if len(found) > 1:
                _ambiguous(path, found)
            if found:
                return _Choice(tuple(found))
    if variant is not None:
        found = [n for n in weights if f".{variant}." in n or f".{variant}-" in n]
        if len(found) == 1 and found[0].endswith(_READABLE):
            return _Choice(tuple(found))
        if not _same_set(found):
            have = sorted({m["variant"] for n in weights if (m := _VARIANT.fullmatch(n))})
            hint = f"there is {', '.join(have)}" if have else "the folder has no variants"
            raise CkptError("variant-missing", f"no weights of the variant {variant!r}", path, hint)
        return _Choice(tuple(found), numbered=True)
    return _other(path, weights)


def _single(stem: str, suffix: str, variant: str | None) -> tuple[str, ...]:
    return (f"{stem}{suffix}" if variant is None else f"{stem}.{variant}{suffix}",)


def _indexes(stem: str, suffix: str, variant: str | None) -> tuple[str, ...]:
    """transformers puts the variant before the last suffix of the index, diffusers after the stem."""
    if variant is None:
        return (f"{stem}{suffix}.index.json",)
    return (f"{stem}{suffix}.index.{variant}.json", f"{stem}.{variant}{suffix}.index.json")


def _other(path: str, weights: list[str]) -> _Choice:
    """Weights under other names: a numbered set, else the only file or rank set there is."""
    sharded = [n for n in weights if _ZERO.fullmatch(n)]
    special = {n for n in weights if _ADAPTER.fullmatch(n) or _is_variant(n)}
    special.update(sharded if len(sharded) > 1 else ())
    parallel = ranks.rank_set(path, weights)
    usable = [n for n in weights if n.endswith(_READABLE) and n not in special]
    indexes = [n for n in weights if n.endswith(".index.json")]
    for suffixes in ((".safetensors",), (".bin", ".pt", ".pth", ".ckpt"), (".onnx",)):
        found = [n for n in usable if n.endswith(suffixes)]
        if parallel and ".pth" in suffixes:
            others = [n for n in found if n not in parallel.values()]
            first = next(iter(parallel.values()))
            if others:
                _ambiguous(path, [*others, first])
            return _Choice((first,)) if ranks.is_whole(parallel) else _Choice((first,), parallel=parallel)
        named = [n for n in indexes if n.endswith(tuple(s + ".index.json" for s in suffixes))]
        if len(named) == 1:
            return _Choice(tuple(named))
        if len(found) == 1 and not shards.NUMBERED.fullmatch(found[0]):
            return _Choice(tuple(found))
        if _same_set(found):
            return _Choice(tuple(found), numbered=True)
        if found or named:
            _ambiguous(path, found or named)
    _refuse_special(path, weights)
    hint = "name the file itself if it has another suffix"
    raise CkptError("no-weights", "the folder holds no weights that ckptkit knows by name", path, hint)


def _is_variant(name: str) -> bool:
    match = _VARIANT.fullmatch(name)
    return match is not None and match["stem"] in _STEMS[0] + _STEMS[1]


def _same_set(names: Iterable[str]) -> bool:
    """Whether the names are all shards of one numbered set."""
    sets = {m.group("stem", "count", "suffix") if (m := shards.NUMBERED.fullmatch(n)) else n for n in names}
    return len(sets) == 1 and all(isinstance(one, tuple) for one in sets)


def _refuse_special(path: str, weights: list[str]) -> None:
    """Variants, sharded states, adapters and components, which are read only when they are named."""
    variants = sorted({m["variant"] for n in weights if _is_variant(n) and (m := _VARIANT.fullmatch(n))})
    if variants:
        message = f"the folder holds only the variants {', '.join(variants)}"
        raise CkptError("variant-missing", message, path, f"--variant {variants[0]}")
    sharded = [n for n in weights if _ZERO.fullmatch(n)]
    if sharded:
        raise CkptError(
            "rank-files",
            f"{_some(sharded)} are the ranks of one sharded checkpoint; each holds a part of every tensor",
            path,
            f"one rank can be read by its path: {os.path.join(path, sharded[0])}",
        )
    adapters = [n for n in weights if _ADAPTER.fullmatch(n)]
    if adapters:
        inner = os.path.join(path, adapters[0])
        raise CkptError(
            "needs-a-component", "the folder holds an adapter, no model of its own", path, f"name it: {inner}"
        )
    below = [
        name
        for name in sorted(listing.folders(path))
        if any(
            re.search(r"\.safetensors$|_model(?:\..+)?\.bin$", n)
            for n in listing.files(os.path.join(path, name))
        )
    ]
    if below:
        hint = f"name one: {os.path.join(path, below[0])}"
        raise CkptError(
            "needs-a-component", f"the weights stand in folders below: {_some(below)}", path, hint
        )


def _ambiguous(path: str, names: list[str]) -> NoReturn:
    raise CkptError(
        "ambiguous-weights",
        f"the folder holds several checkpoints: {_some(names)}",
        path,
        f"name one: {os.path.join(path, names[0])}",
    )


# A file or folder that only such a folder has → what it is, and the next step.
_FOREIGN = (
    (".metadata", r".*\.distcp", "a torch distributed checkpoint (DCP)",
     "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt joins it"),
    ("zero_to_fp32.py", r"", "a DeepSpeed ZeRO checkpoint", "python zero_to_fp32.py . model.bin joins it"),
    ("latest_checkpointed_iteration.txt", r"", "a Megatron checkpoint", "its own tools export it"),
    ("saved_model.pb", r"", "a TensorFlow SavedModel", ""),
    ("_CHECKPOINT_METADATA", r"", "an Orbax checkpoint", "restore it with orbax and save it as .safetensors"),
    ("Manifest.json", r"Data", "a Core ML package (.mlpackage)", ""),
    ("data.pkl", r"version|data", "an unpacked PyTorch file", "pack it again: zip -0 -r model.pt FOLDER"),
    (".zgroup", r"", "a zarr store", ""),
)  # fmt: skip


def _refuse_foreign(path: str, names: list[str]) -> None:
    everything = {*names, *listing.folders(path)}
    for sign, also, what, hint in _FOREIGN:
        if sign in everything and (not also or any(re.fullmatch(also, name) for name in everything)):
            if _has_weights(names):
                continue
            raise CkptError("format-unsupported", f"this is {what}", path, hint or None)
    variables = [n for n in names if re.fullmatch(r".*\.data-\d{5}-of-\d{5}", n)]
    if variables and not _has_weights(names):
        raise CkptError("format-unsupported", "this is a TensorFlow checkpoint", path)


def _has_weights(names: list[str]) -> bool:
    return any(
        n.endswith((".safetensors", ".safetensors.index.json")) or re.fullmatch(r"pytorch_model.*", n)
        for n in names
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(ascii(n)[1:-1] for n in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
