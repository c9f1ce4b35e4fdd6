"""A pickled nn.Module: which of its attributes are its state dict.

A module is an instance whose state has the dicts `_parameters`, `_buffers` and `_modules`. Its `state_dict()` has,
in this order, the parameters, the buffers not named in `_non_persistent_buffers_set` (modules pickled before
torch 1.5 have none), then those of its submodules below their names; entries that are None are left out. Other
attributes are not part of it, tensors among them included. `get_extra_state` and state dict hooks are code and
are not run. Source: torch 2.13 `torch/nn/modules/module.py`.
"""

from typing import Any, NamedTuple

from ckptkit.format.pytorch.globals import entries, simplify
from ckptkit.format.pytorch.nodes import Object, Set

PARTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")  # what makes a module
_NOISE = frozenset(
    {
        *PARTS, "training", "_is_full_backward_hook", "_backend",
        "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
        "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks", "call_super_init", "dump_patches",
    }
)  # fmt: skip


class Member(NamedTuple):
    """Something of a module; `kind` is parameter, buffer or module, or "" for what its state dict leaves out."""

    name: str
    value: Any
    kind: str


def members(state: dict[str, Any]) -> list[Member] | None:
    """What a module of these attributes holds, its state dict first and in its order; None if it is no module."""
    parts = [entries(state.get(part)) for part in PARTS[:3]]
    if any(part is None for part in parts):
        return None
    parameters, buffers, modules = (part or {} for part in parts)
    transient = _names(state.get(PARTS[3]))
    found = [Member(name, value, "parameter") for name, value in parameters.items()]
    found += [Member(name, value, "buffer") for name, value in buffers.items() if name not in transient]
    found += [Member(name, value, "module") for name, value in modules.items()]
    found = [member for member in found if member.value is not None]
    found += [Member(n, v, "") for n, v in buffers.items() if n in transient and v is not None]
    found += [Member(name, value, "") for name, value in state.items() if name not in _NOISE]
    return found


def _names(node: object) -> set[str]:
    if type(node) is Object:
        node = simplify(node)
    return {name for name in node if isinstance(name, str)} if type(node) is Set else set()
