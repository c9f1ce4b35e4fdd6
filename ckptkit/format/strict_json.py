"""JSON files beside weights (index.json, config.json), read within a budget and without the parser's leniencies."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File

_CONTAINERS = (
    100_000  # an index has three, a config dozens; empty ones take twenty times their text in memory
)


def load(file: File, limit: int) -> dict[str, Any]:
    """The object that a file of at most `limit` bytes holds.

    Raises CkptError `over-budget`, `json-invalid` (no UTF-8, no JSON, NaN, nested too deeply, no object) or
    `duplicate-name` (one key twice in an object, which parsers resolve differently).
    """
    if file.size > limit:
        message = f"{file.size:,} bytes of JSON; at most {limit:,} are read"
        raise CkptError("over-budget", message, file.path)
    with file.open() as reader:
        raw = reader.read(0, file.size)
    if raw.count(b"{") + raw.count(b"[") > _CONTAINERS:
        message = f"more than {_CONTAINERS:,} objects and arrays"
        raise CkptError("over-budget", message, file.path)

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise CkptError(
                "duplicate-name", f"the key {ascii(twice)[:80]} stands twice in one object", file.path
            )
        return found

    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise CkptError("json-invalid", f"not UTF-8 (byte {error.start})", file.path) from None
    except RecursionError:
        raise CkptError("json-invalid", "nested too deeply", file.path) from None
    except ValueError as error:
        raise CkptError("json-invalid", f"not JSON: {str(error).split(': value')[0]}", file.path) from None
    if not isinstance(value, dict):
        raise CkptError("json-invalid", "not a JSON object", file.path)
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON value")
