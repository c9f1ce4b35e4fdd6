"""Values as strict JSON: exact numbers, non-finite ones as strings, frozen values as objects."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """One JSON document in ASCII; dataclasses are objects, NaN and infinities the strings "nan", "inf", "-inf"."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=_plain)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """What json does not know: frozen values, mappings, sets, byte strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def _finite(value: Any) -> Any:
    """The value with every non-finite number as a string, whatever is nested in what."""
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _finite(_plain(value))
        case Mapping():
            return _finite(dict(value))
    return value
