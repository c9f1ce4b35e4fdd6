"""Contracts as text: short lines, quoted only where YAML needs it; `parse` gives back the same contract."""

import re
from collections.abc import Iterator

from ckptkit.core.errors import CkptError
from ckptkit.rules.nodes import dump
from ckptkit.targets.contract import VERSION, Contract, Entry, dim_text, size_text, spec_text

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./{},*|+\-]*")


def text(contract: Contract) -> str:
    """Raises CkptError `name-unwritable` for a name that YAML cannot hold."""
    return contract.comment + "".join(f"{line}\n" for line in _lines(contract))


def _lines(contract: Contract) -> Iterator[str]:
    yield f"ckptkit-contract: {VERSION}"
    if contract.checkpoint:
        yield f"checkpoint: {_quoted(contract.checkpoint)}"
    if contract.ranges:
        yield f"ranges: {dump(dict(contract.ranges))}"
    if contract.dimensions:
        sizes = {
            name: "any" if size is None else dim_text(size) for name, size in contract.dimensions.items()
        }
        yield f"dimensions: {dump(sizes)}"
    yield from _entries("tensors", [entry for entry in contract.entries if not entry.spec.optional])
    if any(entry.spec.optional for entry in contract.entries):
        yield from _entries("optional", [entry for entry in contract.entries if entry.spec.optional])
    if contract.ties:
        yield "ties:"
        yield from (f"  - {dump(list(tie))}" for tie in contract.ties)
    if contract.metadata:
        yield "metadata:"
        for key, value in contract.metadata.items():
            yield f"  {_key(key)}: {'any' if value is None else _quoted(value)}"
    if contract.forbidden:
        yield f"forbidden: {dump(list(contract.forbidden))}"
    if contract.unlisted:
        yield "unlisted: allow"
    policies = contract.policies
    rules: dict[str, list[str] | str] = {"dtypes": list(policies.dtypes)} if policies.dtypes else {}
    rules |= {"max_size": size_text(policies.max_bytes)} if policies.max_bytes is not None else {}
    rules |= {"values": "finite"} if policies.finite else {}
    rules |= {"globals": list(policies.globals)} if policies.globals is not None else {}
    if rules:
        yield f"policies: {dump(rules)}"
    if contract.digest:
        yield f"digest: {contract.digest}"
    if contract.files:
        yield "files:"
        for name, stored in contract.files.items():
            yield f"  {_key(name)}: {{sha256: {stored.sha256}, size: {stored.size}}}"


def _entries(key: str, entries: list[Entry]) -> Iterator[str]:
    if not entries:
        yield f"{key}: {{}}"
        return
    yield f"{key}:"
    for pattern, spec in entries:
        yield f"  {_key(pattern)}: {spec_text(spec)}"


def _key(text: str) -> str:
    """A text as a key of an indented mapping; YAML allows long ones only where a question mark says so."""
    quoted = _quoted(text)
    return quoted if len(quoted) < 1000 else f"? {quoted}\n  "


def _quoted(text: str) -> str:
    """A text as YAML's block context has it."""
    if _PLAIN.fullmatch(text) and len(text) < 120:
        return text
    if any("\ud800" <= c <= "\udfff" for c in text):
        message = "a name that is no Unicode text cannot stand in a contract"
        raise CkptError("name-unwritable", message, repr(text))
    quoted = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{quoted}"'
