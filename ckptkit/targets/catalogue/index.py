"""What the catalogue says, in a form that names a checkpoint without reading YAML: `index.json`, made by `build`.

A body (the tensors without those of a head) is known by a checksum of its names and shapes, in which the dimensions
that may differ have no size. So a checkpoint is named only if every tensor of its body is as published.
"""

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

FILE = os.path.join(os.path.dirname(__file__), "index.json")
_NUMBER = re.compile(r"[0-9]+")

# name → dimension of each axis that has one that may differ, the axis as text
Axes = Mapping[str, Mapping[str, tuple[str, int]]]


@cache
def load() -> dict[str, Any]:
    """The index: `names`, `models` and `forms`, as `build` makes them."""
    import json

    with open(FILE, "rb") as file:
        found: dict[str, Any] = json.load(file)
    return found


def plain(name: str) -> str:
    """A name without its numbers: what is optional is so in every layer."""
    return _NUMBER.sub("#", name)


def fingerprint(tensors: Iterable[tuple[str, tuple[int, ...]]], axes: Axes) -> str:
    """A checksum of names and shapes, in any order; axes that may differ count as one.

    CRC-32 of the text and of the text backwards: the import of `hashlib` would cost more than all else here. Whoever
    wants to be taken for another model needs no collision, only its names and shapes.
    """
    from zlib import crc32

    lines = []
    for name, shape in tensors:
        differing = axes.get(name)
        sizes = [
            "*" if differing and str(axis) in differing else str(size) for axis, size in enumerate(shape)
        ]
        lines.append(f"{name} {','.join(sizes)}\n")
    text = "".join(sorted(lines)).encode("utf-8", "surrogatepass")
    return f"{crc32(text):08x}{crc32(text[::-1]):08x}"


def files() -> list[str]:
    """The families of the catalogue."""
    from ckptkit.targets.catalogue import DATA

    return sorted(name.removesuffix(".yaml") for name in os.listdir(DATA) if name.endswith(".yaml"))


def build() -> dict[str, Any]:
    """The index, from the files of the catalogue."""
    from ckptkit.targets.catalogue import SCHEMES, family

    names: dict[str, str] = {}
    models: dict[str, dict[str, Any]] = {}
    forms: dict[str, list[dict[str, Any]]] = {}
    for file in files():
        found = family(file)
        for model in found.models.values():
            for name in (model.name, *model.also):
                if name in names:
                    raise ValueError(f"the catalogue has {name!r} twice")
                names[name] = model.name
            sizes = found.sizes(model.name)
            models[model.name] = {
                "title": model.title,
                "also": model.also,
                "schemes": [
                    name
                    for scheme in found.schemes.values()
                    if model.name in scheme.models
                    for name in (scheme.name, *scheme.also)
                ],
                "sizes": {name: sizes[name] for name in found.open},
                "family": file,
            }
        for name, scheme in found.schemes.items():
            form = _form(file, found, name)
            for taken in scheme.families:
                forms.setdefault(f"{taken}/{SCHEMES[name]}", []).append(form)
    return {"names": names, "models": models, "forms": forms}


def text() -> str:
    """The index as its file has it: a line for each model and form."""
    import json

    found = build()
    parts = []
    for part, rows in found.items():
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        parts.append(f"{json.dumps(part)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _form(file: str, found: Any, name: str) -> dict[str, Any]:
    """What recognises the models of one family in one scheme."""
    from ckptkit.targets.catalogue.architecture import standing

    scheme = found.schemes[name]
    bodies: dict[str, list[str]] = {}
    heads: dict[str, str] = {}
    axes: dict[str, dict[str, tuple[str, int]]] = {}
    optional: set[str] = set()
    for model in scheme.models:
        sizes = found.sizes(model)
        parts = [
            ("", found.body(name, sizes)),
            *((head, found.head(name, head, sizes)) for head in scheme.heads),
        ]
        for dimension in found.open:
            other = found.sizes(model, {dimension: sizes[dimension] + 1})
            for head, specs in parts:
                changed = found.head(name, head, other) if head else found.body(name, other)
                for key, places in standing(specs, changed).items():
                    axes.setdefault(key, {}).update({str(axis): (dimension, n) for axis, n in places.items()})
        for head, specs in parts:
            optional |= {plain(key) for key, spec in specs.items() if spec.optional}
            required = [(key, spec.shape) for key, spec in specs.items() if not spec.optional]
            if head:
                heads.setdefault(fingerprint(required, axes), head)
            else:
                bodies.setdefault(fingerprint(required, axes), []).append(model)
    return {
        "family": file,
        "scheme": name,
        "root": scheme.root,
        "prefixes": sorted({_prefix(line) for lines in scheme.heads.values() for line in lines}),
        "optional": sorted(optional),
        "axes": axes,
        "bodies": bodies,
        "heads": heads,
    }


def _prefix(line: Any) -> str:
    """What the names of a head's line begin with, up to a dot."""
    from ckptkit.targets.catalogue.architecture import KINDS

    start, brace, _ = line.pattern.partition("{")
    if line.kind in KINDS and not brace:
        return f"{start}."
    return f"{start.rpartition('.')[0]}."
