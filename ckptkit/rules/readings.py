"""In how many ways a name might be read by a template: what makes that more than one, and an upper bound.

Holes for one of a few texts, and numbers, are read in one way where what stands beside them cannot be mistaken for
a part of them. Where it can (`{x:a|ab}{y:bc|c}`, `{i}0{j}`), a search tries each way, and two may succeed.
"""

from collections.abc import Iterator, Sequence

Part = str | tuple[str, ...] | None
"""Of a template: literal text, the texts of a hole, or None for a hole that anything without a dot, or anything,
stands for."""

DIGITS = tuple("0123456789")
_LONGEST_NUMBER = 9


def most(parts: Sequence[Part]) -> int:
    """An upper bound of the ways in which a search has to try to read a name, open holes apart; 1 if it is certain."""
    joined = list(_joined(parts))
    found = 1
    for place, part in enumerate(joined):
        if not isinstance(part, tuple):
            continue
        signs = {sign for text in part for sign in text}
        before, behind = joined[:place][-1:], joined[place + 1 :][:1]
        edges = [_edge(other, -1) for other in before] + [_edge(other, 0) for other in behind]
        if any(edge is None or edge & signs for edge in edges):
            found *= _LONGEST_NUMBER if part is DIGITS else _alike(part)
    return found


def _joined(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts without empty ones, neighbouring literal texts as one."""
    literal = ""
    for part in parts:
        if isinstance(part, str):
            literal += part
        elif part != ("",):
            if literal:
                yield literal
            literal = ""
            yield part
    if literal:
        yield literal


def _edge(part: Part, end: int) -> set[str] | None:
    """The characters that can stand at an end of it; None if that is not known."""
    texts = (part,) if isinstance(part, str) else part
    return None if texts is None or "" in texts else {text[end] for text in texts}


def _alike(texts: Sequence[str]) -> int:
    """How many of the texts can begin, or end, at one place of a name."""
    if len(set(map(len, texts))) == 1:
        return 1
    return max(_chain(texts), _chain([text[::-1] for text in texts]))


def _chain(texts: Sequence[str]) -> int:
    """The longest row of texts each of which begins with the one before."""
    open_texts: list[str] = []
    longest = 1
    for text in sorted(texts):
        while open_texts and not text.startswith(open_texts[-1]):
            open_texts.pop()
        open_texts.append(text)
        longest = max(longest, len(open_texts))
    return longest
