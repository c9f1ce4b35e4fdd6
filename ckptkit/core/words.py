"""Wording that messages share."""


def plural(number: int, noun: str, several: str = "") -> str:
    """`1 tensor`, `2 tensors`; `several` is the plural of a noun that takes more than an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {several or noun + 's'}"
