"""The catalogue of published architectures: contracts by name, for the names that several libraries give.

Each file in `data/` is one family (`architecture`); `index.json` is made from them, so that naming a checkpoint or
listing what there is reads no YAML (`index`).
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ckptkit.core.errors import CkptError

if TYPE_CHECKING:
    from ckptkit.targets.catalogue.architecture import Architecture
    from ckptkit.targets.target import Target

DATA = os.path.join(os.path.dirname(__file__), "data")

# Whose names a scheme are, for people, and as `ckptkit.match.schemes` calls them.
SCHEMES = {
    "allennlp": "AllenNLP",
    "hf": "Hugging Face",
    "hf-5": "Hugging Face",  # where transformers 5 holds other names in memory than it saves
    "meta": "Meta",
    "openai": "OpenAI",
    "original": "original",
    "timm": "timm",
    "torchvision": "torchvision",
    "torchvision-old": "torchvision",  # as published files have them; torchvision renames them on loading
    "ultralytics": "ultralytics",
}
OWN = ("labels",)  # dimensions for which nothing is published: everyone has their own


@dataclass(frozen=True, slots=True)
class Published:
    """A published model.

    Attributes:
        name: in the catalogue, as `check --target` takes it.
        title: for people.
        also: other names that are taken.
        schemes: whose names there are contracts for (`SCHEMES`).
        sizes: the dimensions that may differ without making it another model: name → size.
        family: file in the catalogue.
    """

    name: str
    title: str
    also: tuple[str, ...]
    schemes: tuple[str, ...]
    sizes: Mapping[str, int]
    family: str


def architectures() -> tuple[Published, ...]:
    """Every published model there is a contract for. Reads no YAML."""
    return tuple(_published().values())


def find(name: str) -> Published | None:
    """The model of a name; upper case and `_` for `-` do not matter."""
    from ckptkit.targets.catalogue.index import load

    return _published().get(load()["names"].get(name.lower().replace("_", "-"), ""))


def near(name: str) -> list[str]:
    """Names of the catalogue that are nearly this one."""
    from difflib import get_close_matches

    from ckptkit.targets.catalogue.index import load

    return get_close_matches(name.lower().replace("_", "-"), load()["names"], 3, 0.7)


def families(model: Published) -> set[str]:
    """What `ckptkit.match.schemes` may take a model for."""
    from ckptkit.targets.catalogue.index import load

    forms = load()["forms"].items()
    return {key.partition("/")[0] for key, rows in forms for row in rows if row["family"] == model.family}


def is_name(text: str) -> bool:
    """Whether a text names a model of the catalogue, alone or with scheme and sizes."""
    return find(text.partition(",")[0].partition("@")[0]) is not None


def target(text: str) -> "Target":
    """The target `NAME[@SCHEME][,DIMENSION=SIZE…]`: the model in each of its names and with each of its heads.

    Raises CkptError `not-found` for a name, scheme or dimension that is not in the catalogue.
    """
    from dataclasses import replace

    first, *given = text.split(",")
    name, _, scheme = first.partition("@")
    model = find(name)
    if model is None:
        raise CkptError(
            "not-found", "there is no such architecture", text, "ckptkit architectures lists them"
        )
    found = family(model.family)
    schemes = [s for s in model.schemes if s in found.schemes]
    if scheme:
        schemes = [s for s in schemes if scheme in (s, *found.schemes[s].also)]
        if not schemes:
            hint = f"there are {', '.join(model.schemes)}"
            raise CkptError("not-found", f"{model.name} has no contract for names of {scheme}", text, hint)
    sizes = _sizes(given, found.sizes(model.name), text)
    forms = [form for s in schemes for form in _forms(found, model.name, s, sizes)]
    return replace(forms[0], others=tuple(forms[1:]))


@cache
def family(name: str) -> "Architecture":
    """A family by the name of its file. Raises CkptError `contract-invalid`."""
    from ckptkit.targets.catalogue.architecture import Architecture

    with open(os.path.join(DATA, f"{name}.yaml"), encoding="utf-8") as file:
        return Architecture.parse(file.read(), f"{name}.yaml")


def _forms(found: "Architecture", model: str, name: str, given: Mapping[str, int]) -> "Iterator[Target]":
    """The model in the names of one scheme: with each head under the root, and without root and head."""
    from ckptkit.targets.target import Target

    scheme = found.schemes[name]
    path = ",".join([f"{model}@{name}", *(f"{dimension}={size}" for dimension, size in given.items())])
    sizes = found.sizes(model, given)
    anyone: Mapping[str, None] = {dimension: None for dimension in OWN if dimension in {*sizes} - {*given}}
    body = found.body(name, sizes)
    rooted = {scheme.root + key: spec for key, spec in body.items()}
    for head in scheme.heads:
        tensors = rooted | found.head(name, head, sizes, loose=anyone)
        yield Target(path, "architecture", tensors, anyone)
    if scheme.root or not scheme.heads:
        yield Target(path, "architecture", body)


def _sizes(given: Iterable[str], known: Mapping[str, object], text: str) -> dict[str, int]:
    """The sizes that were given, of dimensions that the model has."""
    sizes = {}
    names = [name for name, size in known.items() if isinstance(size, int)]
    for item in given:
        name, _, number = item.partition("=")
        if name not in names or not (number.isascii() and number.isdigit() and len(number) < 10):
            message = f"{item!r} is no dimension and size; there are {', '.join(names)}"
            raise CkptError("not-found", message, text, f"such as {text.partition(',')[0]},{names[-1]}=10")
        sizes[name] = int(number)
    return sizes


@cache
def _published() -> dict[str, Published]:
    from ckptkit.targets.catalogue.index import load

    return {
        name: Published(
            name, row["title"], tuple(row["also"]), tuple(row["schemes"]), row["sizes"], row["family"]
        )
        for name, row in load()["models"].items()
    }
