"""Names of many tensors on one line: what stands in braces is one of several texts.

    {i}         a range declared under `ranges`; the same number wherever it stands in the name
    {0..31}     these numbers; {00..09} keeps its zeros; {0..3,7} several
    {q,k,v}     one of these texts
    {{ }}       braces of the name itself

A pattern stands for the product of its alternatives.
"""

import re
from collections.abc import Mapping
from itertools import product

from ckptkit.core.errors import CkptError

NAMES = 1_000_000  # that one contract may stand for
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_PIECES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


def numbers(text: str) -> tuple[str, ...]:
    """`0..3,7` as texts: 0, 1, 2, 3, 7. Raises CkptError `contract-invalid`."""
    found: list[str] = []
    for item in text.split(","):
        item = item.strip()
        match = _RANGE.fullmatch(item)
        if match is None:
            if not (item.isascii() and item.isdigit()):
                raise CkptError("contract-invalid", f"{item!r} is no range of numbers", None, "such as 0..31")
            found.append(item)
            continue
        first, last = int(match[1]), int(match[2])
        if last < first or last - first >= NAMES:
            raise CkptError("contract-invalid", f"the range {item} counts nothing, or too much")
        width = len(match[1]) if match[1].startswith("0") else 0
        found += [str(number).zfill(width) for number in range(first, last + 1)]
    return tuple(found)


def escape(name: str) -> str:
    """The pattern that stands for this name alone."""
    return name.replace("{", "{{").replace("}", "}}")


def expand(pattern: str, ranges: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Every name a pattern stands for. Raises CkptError `contract-invalid`, `over-budget`."""
    parts: list[tuple[str, ...] | str] = []  # alternatives, or the name of a range
    total = 1
    used: dict[str, tuple[str, ...]] = {}
    for match in _PIECES.finditer(pattern):
        text, inner = match[0], match[1]
        if text in ("{", "}"):
            message = f"a brace without its partner in {pattern!r}"
            raise CkptError("contract-invalid", message, None, "braces of the name itself are doubled: {{ }}")
        if inner is None:
            parts.append(({"{{": "{", "}}": "}"}.get(text, text),))
        elif "," not in inner and ".." not in inner:
            if inner not in ranges:
                raise CkptError(
                    "contract-invalid", f"{{{inner}}} is not declared", None, _near(inner, ranges)
                )
            if inner not in used:
                used[inner] = ranges[inner]
                total *= len(ranges[inner])
            parts.append(inner)
        else:
            counted = all(_RANGE.fullmatch(p) or p.isdigit() for p in inner.split(",")) and ".." in inner
            options = numbers(inner) if counted else tuple(inner.split(","))
            total *= len(options)
            parts.append(options)
        if total > NAMES:
            raise CkptError("over-budget", f"the pattern stands for more than {NAMES:,} names")
    found = []
    for chosen in product(*used.values()):
        values = dict(zip(used, chosen, strict=True))
        columns = [(values[part],) if isinstance(part, str) else part for part in parts]
        found += list(map("".join, product(*columns)))
    return found


def _near(name: str, ranges: Mapping[str, object]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, ranges, 1, 0.5)
    if near:
        return f"meant: {{{near[0]}}}"
    known = f"known: {', '.join(ranges)}" if ranges else "there are none"
    return f"ranges are declared under `ranges`; {known}"
