"""Quantised weights and what belongs to them are one unit: the companions that no rule names follow their weight."""

from collections.abc import Sequence

from ckptkit.core.graph import TensorGraph
from ckptkit.rules.model import Rule
from ckptkit.rules.outcome import Product


def follow(
    graph: TensorGraph,
    left: Sequence[str],
    taken: dict[str, int],
    rules: Sequence[Rule],
    products: list[Product],
    dropped: list[str],
) -> list[str]:
    return list(left)
