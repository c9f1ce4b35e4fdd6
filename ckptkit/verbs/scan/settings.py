"""Configurations beside and within checkpoints, in JSON or YAML: those that name code for their loaders to run.

Known are Hugging Face's `auto_map`, Keras (a Lambda layer is code; a module of another package is imported), Hydra's
`_target_`, skops and YAML's own `!!python` tags. An index of shards that leads outside is told as well.
"""

import json
import re
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.files import beside_file
from ckptkit.verbs.scan.ledger import Ledger

LONGEST = 10 << 20
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
_TAG = re.compile(rb"!!python/[\w./:]{1,200}|tag:yaml\.org,2002:python/[\w./:]{1,200}")
_TARGET = re.compile(rb"^[ \t-]*['\"]?_target_['\"]?[ \t]*:[ \t]*([^\s#]{1,200})", re.MULTILINE)


def scan_text(raw: bytes, name: str, where: str, ledger: Ledger, *, beside: str | None = None) -> None:
    """Look at a configuration, by its name one; `beside` is its path, if it is a file that may name others."""
    if name.endswith((".yaml", ".yml")):
        _yaml(raw, where, ledger)
        return
    try:
        found = json.loads(raw.decode("utf-8-sig")) if len(raw) <= LONGEST else None
    except (ValueError, RecursionError):
        found = None
    if found is None:
        ledger.add("unread", "json-invalid", where, "the JSON file cannot be read")
    elif isinstance(found, dict):
        if beside is not None:
            _index(found, beside, ledger)
        _named(found, where, ledger)


def _yaml(raw: bytes, where: str, ledger: Ledger) -> None:
    for tag in sorted({match[0].decode() for match in _TAG.finditer(raw[:LONGEST])}):
        ledger.add("code", "runs-code", where, f"YAML that makes Python objects: {tag}")
    for name in sorted({match[1].decode("utf-8", "replace") for match in _TARGET.finditer(raw[:LONGEST])}):
        _unknown(name.strip("'\""), where, ledger)
    if len(raw) > LONGEST:
        ledger.add("unread", "over-budget", where, f"a configuration of more than {LONGEST:,} bytes")


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


def _named(found: dict[str, Any], where: str, ledger: Ledger) -> None:
    """What the objects of a JSON document name, each once; nothing recurses."""
    code = found.get("auto_map")
    if isinstance(code, dict) and code:
        named = ", ".join(map(str, code.values()))[:200]
        text = f"would import code of the repository, if that is trusted: {named}"
        ledger.add("unknown", "remote-code", where, text)
    foreign = ""
    told: set[str] = set()
    todo: list[Any] = [found]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
            continue
        if not isinstance(item, dict):
            continue
        todo += item.values()
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
