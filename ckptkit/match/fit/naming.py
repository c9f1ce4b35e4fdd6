"""Right model, other naming: presets of rules that give a target its names, tried before they are offered."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.match.fit.compare import compare, concrete
from ckptkit.match.schemes import WRAPPERS, naming
from ckptkit.targets.target import MADE, Target, weights

if TYPE_CHECKING:
    from ckptkit.rules.ruleset import Rules

_MOST = 500_000  # characters of all names that presets are tried on: some ten thousand tensors


def presets(graph: TensorGraph, target: Target, sizes: Mapping[str, int], *, names: bool) -> list[str]:
    """The presets (`NAME` or `NAME --reverse`) that turn the checkpoint into exactly what the target expects.

    Where there is none and its names are other ones (`names`): those that account for each tensor by its own rule, and
    need a value before more can be told.
    """
    if sum(map(len, graph)) + sum(map(len, target.tensors)) > _MOST:
        return []
    found = _presets(graph, target, sizes, names=names)
    prefix = "".join(wrapper for wrapper in naming(graph.tensors).wrappers if wrapper in WRAPPERS)
    if found or not prefix or not all(name.startswith(prefix) for name in graph):
        return found
    from ckptkit.rules.follow import follow

    try:
        bare = follow(graph, [f"strip:{prefix}"]).graph
    except CkptError:
        return []
    return [_wrapped(label, prefix) for label in _presets(bare, target, sizes, names=names)]


def _wrapped(label: str, prefix: str) -> str:
    """A preset for names within a wrapper: it is taken off first. What is turned around is turned around as a whole."""
    name, reverse, _ = label.partition(" --reverse")
    return f"{name} --rules add:{prefix} --reverse" if reverse else f"strip:{prefix} --rules {name}"


def _presets(graph: TensorGraph, target: Target, sizes: Mapping[str, int], *, names: bool) -> list[str]:
    from ckptkit.rules.recognise import candidates

    aim = target.source or _imagined(graph, target, sizes)
    try:
        if aim is None:
            found = [(label, rules[0]) for label, rules in candidates(graph, {}) if len(rules) == 1]
            return [label for label, rules in found if _gives(rules, graph, target, sizes, names=names)]
        return _giving(graph, aim, names=names) or _giving(graph, _untied(graph, aim, target), names=False)
    except CkptError:  # no rules for this: the caller says that nothing fits
        return []


def _giving(graph: TensorGraph, aim: TensorGraph | None, *, names: bool) -> list[str]:
    """The presets that give exactly the tensors of `aim`; as `presets`."""
    from ckptkit.rules.recognise import candidates

    if aim is None:
        return []
    # convert turns all its rules around or none.
    fitting = [
        item for item in candidates(graph, {}, aim) if len(item.rules) == 1 or "--reverse" not in item.label
    ]
    proved = [label for label, rules in fitting if len(rules) > 1 or not _needs(rules[0].check(graph, aim))]
    plain = [label for label, rules in fitting if not any(step.parsed.keep_others for step in rules)]
    labels = proved or (plain if names else [])
    # Transposing is its own reverse: one of the two says it.
    return [
        label
        for label in labels
        if label.removesuffix(" --reverse") not in labels or " --reverse" not in label
    ]


def _untied(graph: TensorGraph, aim: TensorGraph, target: Target) -> TensorGraph | None:
    """What is to be given where a module ties its weights itself, and one name of each was saved; None elsewhere."""
    if target.kind not in MADE:
        return None
    spare: set[str] = set()
    for group in target.ties:
        kept = next((name for name in group if name in graph), group[0])
        spare |= {name for name in group if name != kept and name not in graph}
    left = {name: tensor for name, tensor in aim.items() if name not in spare}
    return replace(aim, tensors=left) if spare else None


def _imagined(graph: TensorGraph, target: Target, sizes: Mapping[str, int]) -> TensorGraph | None:
    """A checkpoint that fits the target, without bytes; None where it leaves something open, or optional."""
    wanted = {}
    dtype = next((tensor.dtype for tensor in weights(graph).values() if tensor.dtype.kind == "float"), None)
    for name, spec in target.tensors.items():
        shape = concrete(spec, sizes)
        if spec.optional or dtype is None or shape is None or None in shape:
            return None
        kind = DTYPES[spec.dtypes[0]] if spec.dtypes else dtype
        wanted[name] = Tensor(kind, tuple(size for size in shape if size is not None))
    return TensorGraph(wanted, Origin(target.path, "safetensors"))


def _gives(
    rules: "Rules", graph: TensorGraph, target: Target, sizes: Mapping[str, int], *, names: bool
) -> bool:
    """Whether names and shapes under the rules are the target's, its head aside; of rules that lack a value, shapes."""
    try:
        made = rules.apply(graph).graph
    except CkptError as error:
        if error.code != "rule-value" or not names:
            return False
        there: Counter[object] = Counter(tensor.shape for tensor in weights(graph).values())
        specs = [spec for spec in target.tensors.values() if not spec.optional and not spec.head]
        return not Counter[object](concrete(spec, sizes) for spec in specs) - there
    found = compare(weights(made), target)
    different = [item.name for item in found.mismatched if item.what == "shape"]
    return not found.unexpected and all(target.tensors[name].head for name in (*found.missing, *different))


def _needs(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def about(label: str) -> str:
    """What a preset, as `presets` gives it, is about, in its own words."""
    from ckptkit.rules.ruleset import Rules

    words = label.split()
    (name, *_) = (word for word in words if word[0] != "-" and ":" not in word)
    return Rules.preset(name).about + (", backwards" if "--reverse" in words else "")
