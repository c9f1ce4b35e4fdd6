"""Saved digests: lines as `sha256sum` writes them, `digest --json`, and receipts of conversions.

A line is the digest, two blanks and the path, and for a single tensor a tab and its name. As in `sha256sum`, a line
whose path or name holds a backslash, a tab or a line break begins with a backslash, and has those written as `\\\\`,
`\\t`, `\\n`, `\\r`; here also other characters that do not print, as `\\x1b`, `\\u202e`, `\\U000e0001`.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.match import receipt

SCHEMA = "ckptkit.digest/1"

_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *]([^\t]+)(?:\t(.*))?")
_WRITTEN = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNESCAPES = {written: meant for meant, written in _ESCAPES.items()}


Outcome = Literal["ok", "failed", "missing", "unread"]


class Listed(NamedTuple):
    """One saved digest: of a whole checkpoint, or of one tensor in it (`name`)."""

    path: str
    name: str | None
    digest: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a saved digest: `missing` is a tensor that is no longer there, `unread` has an `error`."""

    path: str
    name: str | None
    status: Outcome
    error: CkptError | None = None


def line(path: str, name: str | None, digest: str) -> str:
    """One saved digest as a line of text."""
    plain = path if name is None else f"{path}\t{name}"
    escaped = _escaped(path) if name is None else f"{_escaped(path)}\t{_escaped(name)}"
    return f"{'' if plain == escaped else chr(92)}{digest}  {escaped}"


def _escaped(text: str) -> str:
    """Names come from files: what a terminal could act on is written in letters, and read back as it was."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        _ESCAPES.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text
    )


class Saved(NamedTuple):
    """What a listing holds, and an error for each line that is no digest."""

    listed: list[Listed]
    bad: list[CkptError]


LONGEST = DEFAULT_BUDGETS.header_bytes  # bytes of a listing


def load(path: str) -> Saved:
    """The digests saved in a file. Raises CkptError as `parse`, or what reading raises."""
    file = File.at(path)
    with file.open() as reader:
        return parse(reader.read(0, min(file.size, LONGEST + 1)), path)


def parse(data: bytes, path: str) -> Saved:
    """The digests in the bytes of a listing. Raises CkptError `listing-invalid` if there are none, `over-budget`."""
    if len(data) > LONGEST:
        raise CkptError("over-budget", f"a listing of more than {LONGEST:,} bytes", path)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise CkptError("listing-invalid", "this is no text", path) from None
    if text.lstrip()[:1] in ("{", "["):
        found = Saved(list(_from_json(text, path)), [])
    else:
        found = _from_lines(text, path)
    if not found.listed:
        raise found.bad[0] if found.bad else CkptError("listing-invalid", "the file holds no digests", path)
    return found


def _from_lines(text: str, path: str) -> Saved:
    found = Saved([], [])
    for number, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        match = _LINE.fullmatch(row.removesuffix("\r"))
        if match is None:
            hint = "as `ckptkit digest` writes it: 64 hexadecimal digits, two blanks, a path"
            where = f"{path}, line {number}"
            found.bad.append(CkptError("listing-invalid", "this line is no digest", where, hint))
            continue
        escaped, digest, where, name = match.groups()
        texts = [_unescaped(part) if escaped and part is not None else part for part in (where, name)]
        found.listed.append(Listed(texts[0] or "", texts[1], digest.lower()))
    return found


def _unescaped(text: str) -> str:
    return _WRITTEN.sub(lambda match: _UNESCAPES.get(match[0]) or _character(match[0]), text)


def _character(written: str) -> str:
    """What an escape with digits stands for; other backslashes are themselves."""
    code = int(written[2:], 16) if len(written) > 2 else -1
    return chr(code) if 0 <= code <= sys.maxunicode else written


def _from_json(text: str, path: str) -> Iterator[Listed]:
    try:
        document = json.loads(text)
        for item in document if isinstance(document, list) else [document]:
            yield from _JSON[item["schema"]](item)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        hint = "`convert --receipt` and `digest --json` write such files"
        raise CkptError("listing-invalid", "this JSON holds no digests", path, hint) from None


def _of_digest(item: Mapping[str, Any]) -> Iterator[Listed]:
    yield Listed(_text(item["path"]), None, _text(item["digest"]))
    for name, digest in item["tensors"].items():
        yield Listed(_text(item["path"]), name, _text(digest))


def _of_receipt(item: Mapping[str, Any]) -> Iterator[Listed]:
    yield Listed(_text(item["target"]), None, _text(item["digest"]))
    for tensor in item["tensors"]:
        yield Listed(_text(item["target"]), _text(tensor["name"]), _text(tensor["digest"]))


_JSON: dict[str, Callable[[Mapping[str, Any]], Iterator[Listed]]] = {
    SCHEMA: _of_digest,
    "ckptkit.error/1": lambda item: iter(()),  # in the place of a path that could not be digested
    receipt.SCHEMA: _of_receipt,
}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def check(saved: list[Listed], compute: Callable[[str], tuple[str, Mapping[str, str]]]) -> Iterator[Checked]:
    """Compare saved digests with what is there now.

    `compute` gives the digest of a checkpoint and those of its tensors by name, or raises CkptError.
    """
    by_path: dict[str, list[Listed]] = {}
    for item in saved:
        by_path.setdefault(item.path, []).append(item)
    for path, items in by_path.items():
        try:
            whole, tensors = compute(path)
        except CkptError as error:
            yield Checked(path, None, "unread", error)
            continue
        for _, name, digest in items:
            now = whole if name is None else tensors.get(name)
            outcome: Outcome = "ok" if now == digest else "missing" if now is None else "failed"
            yield Checked(path, name, outcome)
