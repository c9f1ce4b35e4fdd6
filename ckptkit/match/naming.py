"""Right model, other naming: presets of rules that give a target its names, tried before they are offered."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.match.fit import compare, concrete
from ckptkit.targets.target import Target, weights

if TYPE_CHECKING:
    from ckptkit.rules.ruleset import Rules

_MOST = 500_000  # characters of all names that presets are tried on: some ten thousand tensors


def presets(graph: TensorGraph, target: Target, sizes: Mapping[str, int], *, names: bool) -> list[str]:
    """The presets (`NAME` or `NAME --reverse`) that make of the checkpoint what the target expects, its head aside.

    Where its names are other ones (`names`), also those that account for every tensor and still need a value.
    """
    if sum(map(len, graph)) + sum(map(len, target.tensors)) > _MOST:
        return []
    from ckptkit.rules.recognise import candidates

    try:
        found = [(label, rules[0]) for label, rules in candidates(graph, {}) if len(rules) == 1]
        return [label for label, rules in found if _gives(rules, graph, target, sizes, names=names)]
    except CkptError:  # no rules for this: the caller says that nothing fits
        return []


def _gives(
    rules: "Rules", graph: TensorGraph, target: Target, sizes: Mapping[str, int], *, names: bool
) -> bool:
    """Whether the names and shapes under the rules are the target's; of rules that lack a value, the shapes."""
    try:
        made = rules.apply(graph).graph
    except CkptError as error:
        if error.code != "rule-value" or not names:
            return False
        there: Counter[object] = Counter(tensor.shape for tensor in weights(graph).values())
        specs = target.tensors.values()
        wanted: Counter[object] = Counter(
            concrete(spec, sizes) for spec in specs if not spec.optional and not spec.head
        )
        return not wanted - there
    found = compare(weights(made), target)
    different = [item.name for item in found.mismatched if item.what == "shape"]
    return not found.unexpected and all(target.tensors[name].head for name in (*found.missing, *different))


def about(label: str) -> str:
    """What a preset, as `presets` gives it, is about, in its own words."""
    from ckptkit.rules.ruleset import Rules

    name, _, backwards = label.partition(" ")
    return Rules.preset(name).about + (", backwards" if backwards else "")
