"""Names from files in sentences: nothing in them may act on a terminal or pass for a line of our own."""

from collections.abc import Iterable


def printable(text: str) -> str:
    """Text from a file, safe to print: controls, escapes, bidi marks, newlines and surrogates as `\\x..`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Names from a file one after another, each safe to print."""
    return separator.join(map(printable, names))
