"""What the finder returns: which tensors of one checkpoint are made from which of the other, and how."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from typing import Literal

from ckptkit.match.finder.expressions import Expression, describe, rename, sources

How = Literal[
    "same", "renamed", "reshaped", "transposed", "permuted", "cast", "slice", "concat", "stack", "folded"
]


EQUAL = "several tensors hold the same values; chosen by name"
CONSTANT = "one value throughout, which proves nothing; chosen by name"
BESIDE = "the values are the same throughout; chosen by the tensors beside it"
PLACES = "it lies in several places, or in several ways; the first is named"
TWINS = frozenset(
    (EQUAL, CONSTANT, BESIDE)
)  # reasons that concern sources with equal values, and nothing else


@dataclass(frozen=True, slots=True)
class Match:
    """One tensor explained by tensors of the other checkpoint.

    Attributes:
        target: the tensor that is explained.
        expression: how its values come about; every match but a fold has been proved on the bytes.
        how: the gist of the expression in one word; a cast tensor that is also transposed is "transposed".
        certain: False where other sources would do as well.
        why: why it is not certain, or what is inexact; "" otherwise.
        ulp: greatest distance between the target and the expression's values, in units of the last place of the
            target's dtype; 0 wherever the values are equal, as they always are unless `how` is "folded".
    """

    target: str
    expression: Expression
    how: How
    certain: bool = True
    why: str = ""
    ulp: int = 0

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the tensors it is made from, each once, in order."""
        return tuple(dict.fromkeys(sources(self.expression)))

    @property
    def text(self) -> str:
        """The expression in one line."""
        return describe(self.expression)


@dataclass(frozen=True, slots=True)
class Correspondence:
    """How two checkpoints, A and B, correspond.

    Attributes:
        pairs: tensors of B explained by tensors of A, in the order of B.
        backward: tensors of A that explain none of B, explained by tensors of B: further copies of one tensor,
            parts of a larger one, values that were rounded in A. In the order of A.
        constants_a, constants_b: small integers, and single numbers in constants of a graph, among what is left:
            shapes, axes, factors; not weights.
        unmatched_a, unmatched_b: what nothing explains, and what explains nothing.
    """

    pairs: tuple[Match, ...]
    backward: tuple[Match, ...]
    constants_a: tuple[str, ...]
    constants_b: tuple[str, ...]
    unmatched_a: tuple[str, ...]
    unmatched_b: tuple[str, ...]

    def with_pairs(self, more: Iterable[Match], without: Set[str] = frozenset()) -> "Correspondence":
        """With further tensors of B explained, or otherwise than before; those `without` are no longer explained."""
        pairs = {match.target: match for match in (*self.pairs, *more) if match.target not in without}
        used = {name for match in pairs.values() for name in match.sources}
        return replace(
            self,
            pairs=tuple(pairs.values()),
            backward=tuple(match for match in self.backward if match.target not in used),
            constants_a=tuple(name for name in self.constants_a if name not in used),
            constants_b=tuple(name for name in self.constants_b if name not in pairs),
            unmatched_a=tuple(name for name in self.unmatched_a if name not in used),
            unmatched_b=(*(name for name in self.unmatched_b if name not in pairs), *sorted(without)),
        )


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proved match whose sources may have doubles.

    `choices` gives, for a source of `match`, all tensors that hold the same bytes in the same shape.
    """

    match: Match
    choices: dict[str, tuple[str, ...]]

    @property
    def open(self) -> bool:
        return any(len(names) > 1 for names in self.choices.values())

    def settled(self, names: dict[str, str]) -> Match:
        """The match with its sources chosen."""
        expression = rename(self.match.expression, names)
        why = self.match.why if self.match.why and self.match.why not in TWINS else EQUAL
        how = self.match.how
        if how == "renamed" and tuple(sources(expression)) == (self.match.target,):
            how = "same"
        return replace(self.match, expression=expression, how=how, certain=False, why=why)
