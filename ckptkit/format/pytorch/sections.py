"""Which part of a trainer checkpoint is the weights.

By convention first: of the containers at the root that hold tensors, one whose name says so (`state_dict`,
`model`, `module`, `params`, …), and again within that one until it holds tensors itself or is a module. Else by
content: the root if it holds tensors itself, or the one container that does and whose name tells of nothing
else. An averaged copy (EMA, SWA) is the weights only if there are no others. More than one candidate is ambiguous.
"""

import re

from ckptkit.core.errors import CkptError
from ckptkit.core.escaping import shell_word
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Section
from ckptkit.format.pytorch.tree import Branch, Tree

WEIGHTS, EMA, OPTIMIZER, OTHER = "weights", "ema", "optimizer", "other"

_CONVENTIONAL = frozenset(
    {
        "state_dict", "model_state_dict", "model_state", "model_states", "model_weights", "model_params", "model",
        "module", "module_state_dict", "net", "net_state_dict", "net_state", "network", "network_state_dict",
        "network_state", "weights", "weight", "params", "param", "parameters", "nn_state_dict", "modelstate",
    }
)  # fmt: skip
_AVERAGED = frozenset({"ema", "swa", "averaged", "shadow", "modelema", "polyak"})
_TRAINING = frozenset(
    {
        "optimizer", "optimizers", "optim", "optims", "opt", "optimiser", "scheduler", "schedulers", "sched", "scaler",
        "lr", "amp", "adam", "adamw", "sgd",
    }
)  # fmt: skip
_BESIDE = frozenset(
    {
        "rng", "random", "callbacks", "callback", "loops", "criterion", "loss", "losses", "metrics", "history",
        "hyper", "hparams", "args", "config", "cfg", "best", "meta", "metadata", "sampler", "dataloader", "datamodule",
        "stats", "epoch", "step",
    }
)  # fmt: skip


def role(branch: Branch) -> str:
    """What a section is: weights, ema, optimizer or other, by its name and keys."""
    if {"state", "param_groups"} <= branch.keys:
        return OPTIMIZER
    words = set(re.split(r"[\W_]+", branch.key.lower()))
    if words & _AVERAGED:
        return EMA
    if words & _TRAINING:
        return OPTIMIZER
    if branch.key.lower() in _CONVENTIONAL:
        return WEIGHTS
    return OTHER


def choose(root: Branch) -> tuple[Branch, tuple[Branch, ...]]:
    """The weights, and the candidates when there are several (then the first is the root)."""
    place = root
    while place.kind != "module":
        inner = [branch for branch in place.branches if branch.count]
        named = [branch for branch in inner if role(branch) == WEIGHTS]
        if not named and place is root and not place.direct:
            named = [branch for branch in inner if _plausible(branch)]
            if not named:
                named = [branch for branch in inner if role(branch) == EMA]
        elif place is not root and place.direct:
            break
        if len(named) > 1:
            return (root, tuple(named)) if place is root else (place, ())
        if not named:
            break
        place = named[0]
    return place, ()


def _plausible(branch: Branch) -> bool:
    """Whether a container without a telling name could be a state dict."""
    words = set(re.split(r"[\W_]+", branch.key.lower()))
    return (
        role(branch) == OTHER
        and not words & _BESIDE
        and (branch.kind == "module" or (branch.kind != "object" and branch.direct > 0))
    )


def listed(tree: Tree, chosen: Branch, candidates: tuple[Branch, ...]) -> tuple[Section, ...]:
    """The parts at the root that hold tensors, the chosen one under its own path; none where the root is one."""
    if chosen is tree.root and not candidates:
        return ()
    found = []
    for branch in tree.root.branches:
        if not branch.count:
            continue
        kind = role(branch)
        if branch in candidates:
            kind = WEIGHTS
        elif chosen.path == branch.path or chosen.path.startswith(f"{branch.path}."):
            branch, kind = chosen, role(branch) if role(branch) == EMA else WEIGHTS
        nbytes = sum(tensor.nbytes for tensor in tree.tensors[branch.start : branch.stop])
        found.append(Section(branch.path, kind, branch.count, nbytes))
    return tuple(found)


def ambiguous(candidates: tuple[Branch, ...]) -> CkptError:
    """Says what the candidates are, with one ready option for each."""
    names = [branch.path for branch in candidates]
    choices = "\n".join(f"--section {shell_word(name)}" for name in (*names[:20], "all"))
    some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return CkptError("ambiguous-section", f"{len(names)} parts look like weights: {some}", None, choices)


def ambiguity(candidates: tuple[Branch, ...]) -> Finding:
    """The same for a reader that shows them all."""
    error = ambiguous(candidates)
    return Finding(error.code, "note", "", error.message, error.hint or "")


def findings(tree: Tree, chosen: Branch, shown: tuple[Section, ...]) -> list[Finding]:
    """Averaged weights, which are never passed over or taken silently."""
    averaged = [section for section in shown if section.role == EMA]
    if chosen is not tree.root and role(chosen) == EMA:
        return [Finding("ema-chosen", "note", chosen.path, "the only weights are an averaged copy")]
    return [
        Finding(
            "ema-left-out",
            "note",
            section.name,
            "an averaged copy of the weights stands beside them",
            f"--section {shell_word(section.name)} reads it",
        )
        for section in averaged
    ]


def outside(tree: Tree, shown: tuple[Section, ...], selected: str) -> list[Finding]:
    """Tensors that stand in none of the parts listed, nor in the one selected."""
    if sum(section.tensors for section in shown) in (0, len(tree.names)):
        return []
    parts = {section.name for section in shown} | {selected}
    prefixes = tuple(f"{part}." for part in parts)
    names = [name for name in tree.names if name not in parts and not name.startswith(prefixes)]
    if not names:
        return []
    message = (
        f"{len(names)} tensors stand outside these parts" if len(names) > 1 else "this tensor stands apart"
    )
    return [Finding("tensors-outside", "note", names[0], message, "--section all reads everything")]
