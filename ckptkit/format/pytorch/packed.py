"""torch's quantised modules, which keep their weights in an object of C++ (`torch.ScriptObject`).

Layout: such an object is pickled as an instance whose state is `(what it holds, name of its C++ class)`. A state
dict has the weights unpacked, under names that stand in the code of the modules alone:

    Linear…       scale, zero_point, _packed_params.dtype, _packed_params._packed_params = (weight, bias or None)
                  the submodule's object holds (weight, bias)
    Conv…         weight, bias, scale, zero_point; the module is pickled as a tuple of 15 with weight at 10, bias at
                  11, scale at 12 and zero point at 13
    Embedding…    _packed_params.dtype, _packed_params._packed_weight = weight
                  the submodule's object holds (version, [weight], [], […])
    QFunctional   scale, zero_point

Any other object of C++ that a module holds, such as a cell of a dynamic LSTM, is taken for a part of its state dict,
which in torch's own modules it is; what is in it stands below its name. Source: torch 2.13 `torch/ao/nn/quantized`,
`aten/src/ATen/native/quantized/cpu/fbgemm_utils.cpp`.
"""

from typing import Any, NamedTuple

from ckptkit.format.pytorch.modules import Member, members
from ckptkit.format.pytorch.nodes import Object

_CONV_STATE = 15
_SCALE, _ZERO = "scale", "zero_point"


class Number(NamedTuple):
    """A plain number that a state dict has as a tensor of this dtype and no dimension."""

    value: float
    dtype: str


def is_packed(obj: Object) -> bool:
    """Whether it is an object of C++."""
    return obj.name in {("torch", "ScriptObject"), ("torch._C", "ScriptObject")}


def convolution(obj: Object) -> list[Member] | None:
    """What a quantised convolution holds; None for anything else."""
    state = obj.state
    if type(state) is not tuple or len(state) != _CONV_STATE or not _is_quantized(obj):
        return None
    weight, bias, scale, zero = state[10:14]
    numbers = _numbers(scale, zero)
    if type(weight) is not Object or numbers is None:
        return None
    found = [Member("weight", weight, "buffer")]
    if bias is not None:
        found.append(Member("bias", bias, "buffer"))
    return found + numbers


def module_members(obj: Object, state: dict[str, Any]) -> list[Member] | None:
    """As `modules.members`, the weights that quantised modules keep packed included."""
    found = members(state)
    if found is None:
        return None
    held = [_unpacked(obj, m) if _holds_object(m) else m for m in found]
    own = [m for m in held if m.kind and m.kind != "module"]
    submodules = [m for m in held if m.kind == "module"]
    if _is_quantized(obj) and (
        obj.name[1] == "QFunctional" or any(m.name == "_packed_params" for m in submodules)
    ):
        own += _numbers(state.get(_SCALE), state.get(_ZERO)) or []
    return own + submodules + [m for m in held if not m.kind]


def _holds_object(member: Member) -> bool:
    return not member.kind and type(member.value) is Object and is_packed(member.value)


def _unpacked(module: Object, member: Member) -> Member:
    """The weights in an object of C++ where the module's state dict unpacks it; else the object."""
    state = member.value.state
    held = state[0] if type(state) is tuple and len(state) == 2 else None
    place = (module.name[1], member.name)
    value = member.value
    if type(held) is tuple and _is_quantized(module):
        if place == ("LinearPackedParams", "_packed_params") and len(held) == 2:
            value = held
        elif place == ("EmbeddingPackedParams", "_packed_weight") and len(held) == 4:
            weights = held[1]
            value = weights[0] if type(weights) is list and len(weights) == 1 else value
    return Member(member.name, value, "buffer")


def _numbers(scale: object, zero: object) -> list[Member] | None:
    """Scale and zero point of a module's output as the tensors of its state dict; None if they are no numbers."""
    if type(scale) is not float or type(zero) is not int:
        return None
    return [
        Member(_SCALE, Number(scale, "float32"), "buffer"),
        Member(_ZERO, Number(zero, "int64"), "buffer"),
    ]


def _is_quantized(obj: Object) -> bool:
    """Whether the class is one of torch's dense quantised modules."""
    module = obj.name[0]
    return (
        module.startswith(("torch.ao.nn.", "torch.nn."))
        and ".quantized" in module
        and ".sparse." not in module
    )
