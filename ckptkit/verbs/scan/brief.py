"""Values of a pickle in a few words, whatever is nested in what: no recursion, bounded steps."""

from typing import Any

from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set


def brief(value: object, room: int = 160) -> str:
    """A value in a few words, whatever is nested in what; at most about `room` characters."""
    out: list[str] = []
    todo: list[Any] = [value]
    used = 0
    for _ in range(2 * room):
        if not todo or used >= room:
            break
        item = todo.pop()
        text: str
        if type(item) is _Literal:
            text = item
        elif isinstance(item, str | bytes | bytearray):
            text = repr(item[: max(room - used, 8)]) + ("…" if len(item) > room - used else "")
        elif type(item) is Global:
            text = str(item)[:room]
        elif type(item) is Object:
            todo += _between("(", item.args, ")")
            todo.append(item.cls)
            continue
        elif isinstance(item, Dict):
            todo += _between("{", item, "}")
            continue
        elif isinstance(item, list | Set):
            todo += _between("[", item, "]")
            continue
        elif type(item) is tuple:
            todo += _between("(", item, ",)" if len(item) == 1 else ")")
            continue
        else:
            text = repr(item)[:room]
        out.append(text)
        used += len(text)
    return "".join(out) + ("…" if todo else "")


class _Literal(str):
    """Text that is printed as it is."""

    __slots__ = ()


def _between(start: str, items: Any, end: str, most: int = 8) -> list[Any]:
    """The parts of a container, last first, as `brief` takes them from a stack."""
    parts: list[Any] = [_Literal(start)]
    for position, item in enumerate(items[:most]):
        if position:
            parts.append(_Literal(", "))
        parts.append(item)
    if len(items) > most:
        parts.append(_Literal(", …"))
    parts.append(_Literal(end))
    return parts[::-1]
