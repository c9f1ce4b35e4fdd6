"""Configurations beside and within checkpoints, in JSON or YAML: those that name code for their loaders to run.

Known are Hugging Face's `auto_map` and custom pipelines, sentence-transformers' modules and diffusers' parts,
Keras (a Lambda layer is code; a module of another package is imported), Hydra's `_target_`, skops and YAML's own
`!!python` tags. An index of shards that leads outside is told as well.
"""

import json
import re
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.files import beside_file
from ckptkit.format.pytorch.source import Source
from ckptkit.verbs.scan.ledger import Ledger
from ckptkit.verbs.scan.parts import head

_LONGEST = 10 << 20  # bytes that are understood; a longer JSON file, such as a vocabulary, is searched
_PIECE, _OVERLAP = 1 << 20, 64
SUFFIXES = (".json", ".yaml", ".yml")

_KERAS = frozenset(
    f"keras{part}"
    for part in (
        "", ".activations", ".constraints", ".initializers", ".layers", ".losses", ".metrics", ".models",
        ".optimizers", ".optimizers.schedules", ".quantizers", ".regularizers", ".src.models.functional",
        ".src.models.sequential", ".dtype_policies",
    )
)  # fmt: skip
_LAMBDA = ("Lambda", "__lambda__")
# Modules of sentence-transformers itself, and the packages that diffusers takes its parts from.
_SENTENCE = re.compile(r"sentence_transformers(\.[a-z_]+)+\.[A-Z]\w*")
_DIFFUSERS = frozenset({"diffusers", "transformers", "stable_diffusion", "onnxruntime.training", None})
# What a long JSON file must not have: a key that matters, or a plain letter that is spelled as an escape.
_KEY = re.compile(
    rb'"(?:auto_map|custom_pipelines|_target_|__loader__|class_name|_class_name)"'
    rb"|\\u00(?:[4-6][0-9a-fA-F]|7[0-9a-eA-E])"
)

# YAML is searched, once its escapes are undone: `%79` in tags; `\x5f` and folded lines in quoted keys.
_BOMS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_REMARK = re.compile(r"^[ \t]*#.*", re.MULTILINE)
_ESCAPE = re.compile(
    r"%([0-9a-fA-F]{2})|\\x([0-9a-fA-F]{2})|\\u00([0-9a-fA-F]{2})|\\U000000([0-9a-fA-F]{2})|\\\r?\n[ \t]*"
)
_TAG = re.compile(r"!!python/[\w./:]{1,200}|tag:yaml\.org,2002:python/[\w./:]{0,200}")
_PREFIX = re.compile(r"^%TAG[ \t].*", re.MULTILINE)
_TARGET = re.compile(r"\b_target_['\"]?\s*:\s*['\"]?([^\s#,}'\"]{1,200})")


def scan_text(source: Source, name: str, where: str, ledger: Ledger, *, beside: str | None = None) -> None:
    """Look at a configuration, by its name one; `beside` is its path, if it is a file that may name others."""
    raw = head(source, _LONGEST + 1)
    if name.endswith((".yaml", ".yml")):
        _yaml(raw, where, ledger)
    elif len(raw) > _LONGEST:
        _long(source, where, ledger)
    else:
        try:
            found = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            ledger.add("unread", "json-invalid", where, "the JSON file cannot be read")
            return
        if isinstance(found, dict) and beside is not None:
            _index(found, beside, ledger)
        _named(found, where, ledger)
        if name.endswith("modules.json") and isinstance(found, list):
            _sentence(found, where, ledger)
        if name.endswith("model_index.json") and isinstance(found, dict):
            _diffusers(found, where, ledger)


def _long(source: Source, where: str, ledger: Ledger) -> None:
    for at in range(0, source.size, _PIECE):
        match = _KEY.search(source.read(at, min(_PIECE + _OVERLAP, source.size - at)))
        if match or at > ledger.budgets.index_bytes:
            why = f", and it has {match[0].decode()}" if match else ""
            text = f"the JSON file is longer than the {_LONGEST:,} bytes that are understood{why}"
            ledger.add("unread", "over-budget", where, text)
            return


def _yaml(raw: bytes, where: str, ledger: Ledger) -> None:
    coding = next((name for bom, name in _BOMS if raw.startswith(bom)), "utf-8-sig")
    text = _REMARK.sub("", raw[:_LONGEST].decode(coding, "replace"))
    text = _ESCAPE.sub(lambda match: chr(int(next(filter(None, match.groups()), "20"), 16)), text)
    for tag in sorted({match[0] for match in _TAG.finditer(text)}):
        ledger.add("code", "runs-code", where, f"YAML that makes Python objects: {tag}")
    for prefix in sorted({match[0] for match in _PREFIX.finditer(text)}):
        ledger.add("unknown", "runs-unknown", where, f"YAML that gives tags another prefix: {prefix[:200]}")
    for name in sorted({match[1] for match in _TARGET.finditer(text)}):
        _unknown(name, where, ledger)
    if len(raw) > _LONGEST:
        ledger.add("unread", "over-budget", where, f"a configuration of more than {_LONGEST:,} bytes")


def _sentence(found: list[Any], where: str, ledger: Ledger) -> None:
    """modules.json: the classes that sentence-transformers makes a model of."""
    named = {str(item.get("type")) for item in found if isinstance(item, dict) and "type" in item}
    for name in sorted(named):
        if not _SENTENCE.fullmatch(name):
            _unknown(name, where, ledger)


def _diffusers(found: dict[str, Any], where: str, ledger: Ledger) -> None:
    """model_index.json: package and class of each part of a pipeline, and of the pipeline where that is a list."""
    parts = [part for part in found.values() if isinstance(part, list) and len(part) == 2]
    if isinstance(found.get("_class_name"), list):
        parts.append(found["_class_name"])
    named = {
        f"{part[0]}.{part[1]}" for part in parts if part[0] not in _DIFFUSERS and isinstance(part[0], str)
    }
    for name in sorted(named):
        _unknown(name, where, ledger)


def _index(found: dict[str, Any], path: str, ledger: Ledger) -> None:
    places = found.get("weight_map")
    for place in dict.fromkeys(map(_hashable, places.values())) if isinstance(places, dict) else ():
        try:
            if not isinstance(place, str):
                raise CkptError("index-invalid", "names a file by something that is not text")
            beside_file(path, place)
        except CkptError as error:
            ledger.add("trick", error.code, path, error.message)


def _hashable(place: object) -> object:
    return place if isinstance(place, str) else None


def _named(found: object, where: str, ledger: Ledger) -> None:
    """What the objects of a JSON document name, each once; nothing recurses."""
    foreign = ""
    told: set[str] = set()
    remote: dict[str, None] = {}
    todo: list[Any] = [found]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
            continue
        if not isinstance(item, dict):
            continue
        todo += item.values()
        for key in ("auto_map", "custom_pipelines"):
            if code := item.get(key):
                named = code.values() if isinstance(code, dict) else (code,)
                remote[", ".join(map(str, named))[:200]] = None
        name, module = item.get("class_name"), item.get("module")
        if isinstance(name, str) and "config" in item:
            foreign = "a Keras model"
            if name in _LAMBDA and "lambda" not in told:
                told.add("lambda")
                ledger.add(
                    "code", "runs-code", where, "a Lambda layer of Keras: code that runs with the model"
                )
            elif isinstance(module, str) and module not in _KERAS:
                told.add(f"{module}.{name}")
        if isinstance(item.get("_target_"), str):
            told.add(item["_target_"])
        if "__loader__" in item and isinstance(item.get("__class__"), str):
            foreign = "a skops file"
            told.add(f"{item.get('__module__')}.{item['__class__']}")
    for full in remote:
        text = f"would import code of the repository, if that is trusted: {full}"
        ledger.add("unknown", "remote-code", where, text)
    for full in sorted(told - {"lambda"}):
        _unknown(full, where, ledger)
    if foreign:
        ledger.add(
            "unread", "format-unsupported", where, f"this describes {foreign}, which a scan does not read"
        )


def _unknown(name: str, where: str, ledger: Ledger) -> None:
    if name not in ledger.allowed:
        ledger.add(
            "unknown", "runs-unknown", where, f"names {name[:200]!r} for its loader to call", name, True
        )
