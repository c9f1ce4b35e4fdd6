"""What a name or template was probably meant to be: for messages, at a cost that does not grow with the problems."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

_SHAPES = 5_000  # kinds of names compared with
_COMPARED = 24  # of these looked at closely
_RAREST = 16  # groups of letters by which they are found
_LONGEST = 200  # characters compared
_LIKE = 0.7


class Nearest:
    """Names, or templates, to be found by others that differ little from them, numbers and holes apart."""

    def __init__(self, names: Iterable[str]) -> None:
        shapes: dict[str, str] = {}
        for name in names:
            if shapes.setdefault(_shape(name), name) is name and len(shapes) >= _SHAPES:
                break
        self.shapes = list(shapes.items())
        self.places: dict[str, list[int]] = {}  # group of letters → the shapes that have it
        for place, (shape, _) in enumerate(self.shapes):
            for letters in _letters(shape):
                self.places.setdefault(letters, []).append(place)

    def of(self, name: str, most: int = 2) -> list[str]:
        """The most alike, best first; [] if none is."""
        from difflib import get_close_matches

        wanted = _shape(name)[:_LONGEST]
        known = [self.places[letters] for letters in _letters(wanted) if letters in self.places]
        known.sort(key=len)
        counts = Counter(place for places in islice(known, _RAREST) for place in places)
        segments = wanted.count(".") if wanted.endswith(".#") and "{" in name else None  # {rest} is anything
        alike: dict[str, str] = {}
        for place, _ in counts.most_common(_COMPARED):
            shape, other = self.shapes[place]
            if segments is not None:
                shape = ".".join([*shape.split(".")[:segments], "#"])
            alike.setdefault(shape[:_LONGEST], other)
        return [alike[shape] for shape in get_close_matches(wanted, alike, most, _LIKE)]


def _shape(name: str) -> str:
    """The name, or template, with one sign for each number or hole."""
    return re.sub(r"\{[^{}]*\}|[0-9]+", "#", name)


def _letters(shape: str) -> set[str]:
    """Every three neighbouring characters, and the ends."""
    framed = f"^{shape[:_LONGEST]}$"
    return {framed[at : at + 3] for at in range(max(1, len(framed) - 2))}
