"""The files beside the weights that make a Hugging Face folder load and serve, for folder → folder conversions.

Carried byte for byte: generation, tokenizer, processor and template files, the licence and the model card, and
the numbered modules of a sentence-transformers folder. `config.json` is kept true: its dtype follows a cast, and
a `quantization_config` that no longer fits the tensors is an error. Code (`*.py`) only on request. Links are
followed as far as the folder itself and the folder that the weights really lie in (a hub cache's blobs).
"""

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, beside_file
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import OutputFile, Piece
from ckptkit.core.tensor import Extent
from ckptkit.format import listing, strict_json

CONFIG = "config.json"
_CARRIED = (
    "generation_config.json", "tokenizer*", "*.tiktoken", "*.spm", "spiece.model", "sentencepiece*.model",
    "source.spm", "target.spm", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "normalizer.json", "chat_template*", "*processor_config.json", "feature_extractor*.json",
    "modules.json", "sentence_*_config.json", "config_sentence_transformers.json", "scheduler_config.json",
    "adapter_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md",
)  # fmt: skip
_CARRIED_BELOW = (
    "additional_chat_templates/*.jinja",
    "[0-9]_*/*.json",
    "[0-9]_*/*.safetensors",
    "[0-9]_*/*.bin",
)
_DTYPE_KEYS = ("torch_dtype", "dtype")
_FLOATS = ("float64", "float32", "float16", "bfloat16")
# What a quantised weight is stored as; plain floats and 64-bit counters are not among them.
# fmt: off
_QUANTIZED_KINDS = (
    "float8", "float6", "float4", "int8", "uint8", "int4", "uint4", "int2", "uint2", "int32", "qint", "quint",
)
# fmt: on


def companions(
    graph: TensorGraph,
    format_name: str,
    dtype: str | None = None,
    with_code: bool = False,
    config: File | None = None,
) -> tuple[OutputFile, ...]:
    """The side files that a folder read as `graph` hands on to the folder written; none unless a folder was read.

    Args:
        graph: the graph as it will be written; `origin.path` is the folder (or its index) that was read.
        format_name: the format of the weights written; side files are the same for each.
        dtype: the dtype that floats were cast to, or None.
        with_code: carry `*.py`, too.
        config: the config.json that describes what is written, instead of that in the folder.

    Raises:
        CkptError: `stale-quantization`, `json-invalid`, `duplicate-name`, `outside-folder`, `io-error`.
    """
    folder = _folder(graph)
    found: dict[str, File] = {}
    if folder is not None and graph.origin.files:
        weights = graph.origin.files[0].path
        found = {name: File.at(beside_file(weights, name)) for name in _names(folder, with_code)}
    if config is not None:
        found[CONFIG] = config
    files = []
    for name, file in found.items():
        content: bytes | Extent = Extent(file, 0, file.size)
        if name == CONFIG:
            content = _config(file, graph, dtype) or content
        size = len(content) if isinstance(content, bytes) else content.nbytes
        files.append(OutputFile(name, size, (Piece(0, size, content),) if size else ()))
    return tuple(files)


def others(graph: TensorGraph) -> tuple[str, ...]:
    """Names of the files that stand beside the weights in the folder that was read as `graph`, hidden ones apart."""
    folder = _folder(graph)
    if folder is None:
        return ()
    weights = {os.path.basename(file.path) for file in graph.origin.files}
    return tuple(name for name in listing.files(folder) if name not in weights and name[0] != ".")


def is_side_file(name: str) -> bool:
    """Whether a file of this name may belong to a checkpoint's folder; code never counts as such."""
    return any(fnmatchcase(name, pattern) for pattern in (CONFIG, *_CARRIED))


def is_side_folder(name: str) -> bool:
    """Whether a folder of this name may hold side files."""
    return any(fnmatchcase(name, pattern.partition("/")[0]) for pattern in _CARRIED_BELOW)


def _folder(graph: TensorGraph) -> str | None:
    path = graph.origin.path
    if os.path.isdir(path):
        return path.rstrip("/") or path
    return os.path.dirname(path) if path.endswith(".index.json") else None


def _names(folder: str, with_code: bool) -> Iterator[str]:
    """Relative names of the files carried; those one level below, with a slash, come last."""
    for name in listing.files(folder):
        if is_side_file(name) or (with_code and name.endswith(".py")):
            yield name
    for name in listing.folders(folder):
        wanted = [p for p in _CARRIED_BELOW if fnmatchcase(name, p.partition("/")[0])]
        if wanted and not os.path.islink(os.path.join(folder, name)):
            below = [f"{name}/{file}" for file in listing.files(os.path.join(folder, name))]
            yield from (path for path in below if any(fnmatchcase(path, p) for p in wanted))


def _config(file: File, graph: TensorGraph, dtype: str | None) -> bytes | None:
    """The text of config.json after the conversion, or None where it stays as it is."""
    config = strict_json.load(file, DEFAULT_BUDGETS.index_bytes)
    stated = config.get("quantization_config")
    if stated is not None and not any(t.dtype.name.startswith(_QUANTIZED_KINDS) for t in graph.values()):
        method = stated.get("quant_method", "") if isinstance(stated, dict) else ""
        raise CkptError(
            "stale-quantization",
            f"config.json says the weights are quantised ({ascii(method)[1:-1][:40] or 'no method named'}), "
            "the tensors to be written are not",
            file.path,
            "remove quantization_config from a copy of config.json, or write a single file instead of a folder",
        )
    floats = {t.dtype.name for t in graph.values()} & set(_FLOATS)
    if dtype is None and len(floats) == 1:  # what --exclude left may be of one dtype only
        dtype = floats.pop() if _stated(config) - floats else None
    if dtype is None or not _set_dtype(config, dtype):
        return None
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _stated(config: dict[str, Any]) -> set[str]:
    return {config[key] for key in _DTYPE_KEYS if config.get(key) in _FLOATS}


def _set_dtype(config: dict[str, Any], dtype: str) -> bool:
    """Let config and its parts (`text_config`, …) state this dtype; whether anything changed."""
    changed = False
    parts = [config]
    while parts:
        part = parts.pop()
        stated = [key for key in _DTYPE_KEYS if part.get(key) in _FLOATS]
        if part is config and not any(key in config for key in _DTYPE_KEYS):
            stated = ["torch_dtype"]  # silence means float32; both generations of transformers read this key
        for key in stated:
            changed |= part.get(key) != dtype
            part[key] = dtype
        parts += [value for key, value in part.items() if key.endswith("_config") and isinstance(value, dict)]
    return changed
