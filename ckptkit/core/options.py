"""How a checkpoint is to be read: the options every reader gets."""

from dataclasses import dataclass

from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What to read.

    Attributes:
        section: dotted path of the section wanted; None for the weights section found by content and
            convention; "all" for every tensor under its full dotted path.
        variant: variant of a folder's files ("fp16" for `model.fp16.safetensors`), or None.
        ambiguous: what to do when several sections could be the weights: "error", or "all" to show them all.
        budgets: limits on what a file may ask for.
    """

    section: str | None = None
    variant: str | None = None
    ambiguous: str = "error"
    budgets: Budgets = DEFAULT_BUDGETS
