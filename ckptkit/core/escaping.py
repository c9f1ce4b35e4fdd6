"""Names from files in what is said: nothing in them may act on a terminal or pass for a line of our own."""


def printable(text: str) -> str:
    """Text from a file, safe to print: controls, escapes, bidi marks, newlines and surrogates as `\\x..`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shell_word(text: str) -> str:
    """The text as one word of a command that is safe to print and to paste into bash or zsh."""
    if text.isprintable():
        from shlex import quote

        return quote(text)
    return "$'" + "".join(_shell_character(c) for c in text) + "'"


def _shell_character(c: str) -> str:
    if c in "\\'":
        return f"\\{c}"
    return c if c.isprintable() else f"\\U{ord(c):08x}"
