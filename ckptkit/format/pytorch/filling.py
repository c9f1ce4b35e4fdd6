"""What the opcodes of containers do: items and keys into what stands before them, and all above a mark into one."""

from collections.abc import Callable
from typing import Any

from ckptkit.format.pytorch.arguments import invalid
from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set


def set_items(target: object, items: list[Any]) -> None:
    if len(items) % 2:
        raise invalid("a key has no value")
    if type(target) is Dict:
        target += items
    elif type(target) is Object:
        if target.pairs is None:
            target.pairs = items
        else:
            target.pairs += items
    else:
        raise invalid("keys are set in something that is no dict")


def add_items(target: object, items: list[Any], plain: type[list[Any]]) -> None:
    if type(target) is plain:
        target += items
    elif type(target) is Object:
        if target.items is None:
            target.items = items
        else:
            target.items += items
    else:
        raise invalid("items are added to something that does not take them")


def _dict(items: list[Any]) -> Dict:
    if len(items) % 2:
        raise invalid("a key has no value")
    return Dict(items)


def _obj(items: list[Any]) -> Object:
    if not items:
        raise invalid("an instance has no class")
    cls = items[0]
    if type(cls) is Global:
        cls.called = True
    return Object(cls, tuple(items[1:]))


ON_MARK: dict[int, Callable[[list[Any]], object]] = {
    0x6C: list,
    0x64: _dict,
    0x6F: _obj,
    0x91: Set,  # FROZENSET
    0x31: list,  # POP_MARK
    0x69: list,  # INST
}
