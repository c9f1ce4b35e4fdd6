"""What diff returns: values, whose rendering is the command line's work."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ckptkit.match.values import Tolerance, Values

SIMILAR = 0.9  # cosine; what was trained from one start is far above, what was not far below

Kind = Literal["dtype", "shape", "layout", "values", "tie"]
Status = Literal["equal", "close", "unread", "changed", "added", "removed"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkpoints.

    Attributes:
        path, format: where it is, its registry format.
        tensors, nbytes: how many tensors and logical bytes.
        section: the part of a trainer checkpoint that was compared; "" for the whole.
        left_out: parts that hold tensors and were not compared: optimizer states, averaged weights.
    """

    path: str
    format: str
    tensors: int
    nbytes: int
    section: str = ""
    left_out: tuple[str, ...] = ()


class Spec(NamedTuple):
    """A tensor as its manifest states it.

    Attributes:
        dtype, shape: canonical name, elements along each dimension.
        tied_to: the first name of its tie group, None for that itself.
        layout: what it is a part of: "sparse COO of 3×3", "quantised along axis 0", "local shard of 8×4"; "" for a
            tensor that stands for itself.
    """

    dtype: str
    shape: tuple[int, ...]
    tied_to: str | None = None
    layout: str = ""


class Entry(NamedTuple):
    """One name, in either checkpoint or in both.

    Attributes:
        name: in both checkpoints.
        status: `equal` (every bit); `close` (within the tolerance given); `unread` (nothing differs in the
            headers, values were not asked for); `changed`; `added` (only in B); `removed` (only in A).
        kinds: what changed, in the order dtype, shape, layout, values, tie.
        a, b: the tensor on either side; None where it is not there.
        values: the distance of B from A; None where the values are equal, were not read or cannot be compared.
        how: what makes B from A exactly, where that is known: a cast, a transposition; of a name on one side what
            on the other it is a copy of; else "".
    """

    name: str
    status: Status
    kinds: tuple[Kind, ...]
    a: Spec | None
    b: Spec | None
    values: Values | None = None
    how: str = ""


@dataclass(frozen=True, slots=True)
class Renamed:
    """A tensor that has another name or layout on the other side, found by its content.

    Attributes:
        sources: names in A that it is made from; `target`: the name in B.
        how: `renamed`, `transposed`, `permuted`, `reshaped`, `cast`, `slice`, `concat`, `stack`, `folded`.
        text: how exactly, in one line.
        certain: False where other sources would do as well, `why` says which way it was settled.
        ulp: of a folded weight the distance from what the formula gives, in units of the last place.
        backward: the tensor of A is made from that of B.
    """

    sources: tuple[str, ...]
    target: str
    how: str
    text: str = ""
    certain: bool = True
    why: str = ""
    ulp: int = 0
    backward: bool = False


@dataclass(frozen=True, slots=True)
class Other:
    """A difference that is not in a tensor.

    Attributes:
        what: `metadata`, `object`, `graph`, `opset`, `input`, `output`, `order` (of inputs or outputs), `node` (a
            function or training graph too), `attribute`, `inputs`, `outputs`.
        name: key, path or name of the thing.
        a, b: it on either side, JSON-able; None where it is not there.
        counts: whether it makes the checkpoints different. Metadata and objects do not.
    """

    what: str
    name: str
    a: Any
    b: Any
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed from checkpoint A to checkpoint B.

    Attributes:
        a, b: the two.
        entries: every name, in the order of A, those only in B after it; without what `renamed` accounts for.
        renamed: tensors found again by content under other names or in other layouts.
        constants: no weights: settings of a graph that the other side lacks because it has no graph, and
            `num_batches_tracked` that the graph lacks; they are `added` or `removed` entries too, but do not count.
        other: differences outside the tensors.
        tolerance: what counts as close; None: only equal bits are equal.
        read: whether values were compared.
    """

    a: Side
    b: Side
    entries: tuple[Entry, ...]
    renamed: tuple[Renamed, ...] = ()
    constants: frozenset[str] = frozenset()
    other: tuple[Other, ...] = ()
    tolerance: Tolerance | None = None
    read: bool = True

    @property
    def equal(self) -> bool:
        """Whether nothing that counts differs."""
        return (
            not self.renamed
            and not any(o.counts for o in self.other)
            and not any(map(self._counts, self.entries))
        )

    @property
    def verdict(self) -> Literal["equal", "different"]:
        return "equal" if self.equal else "different"

    @property
    def added(self) -> tuple[str, ...]:
        """Names only in B, and names in both where A's tensor is another one of B now."""
        return tuple(e.name for e in self.entries if e.status == "added")

    @property
    def removed(self) -> tuple[str, ...]:
        """Names only in A, and names in both that another tensor of A has taken in B."""
        return tuple(e.name for e in self.entries if e.status == "removed")

    @property
    def changed(self) -> Mapping[str, Entry]:
        """Name → entry of what is in both and not the same."""
        return {e.name: e for e in self.entries if e.status == "changed"}

    @property
    def identical(self) -> int:
        """How many names hold the same bits on both sides (the same dtype and shape, if values were not read)."""
        return sum(e.status in ("equal", "unread") for e in self.entries)

    @property
    def trained(self) -> tuple[str, ...]:
        """Names whose values changed in another way than by a change of dtype or layout."""
        return tuple(e.name for e in self.entries if "values" in e.kinds and not e.how)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names in both with the same values, in whatever dtype; empty if values were not read."""
        if not self.read:
            return ()
        same = ((e, e.b.dtype) for e in self.entries if e.a and e.b and "shape" not in e.kinds)
        return tuple(e.name for e, dtype in same if "values" not in e.kinds or e.how == f"{dtype}({e.name})")

    @property
    def unrelated(self) -> bool:
        """Whether the two hold other weights in much the same shapes: hardly any equal, similar or found again."""
        alike, unlike = len(self.renamed), 0
        looks: dict[Status, Counter[tuple[object, ...]]] = {"added": Counter(), "removed": Counter()}
        for entry in self.entries:
            spec = entry.b or entry.a
            if spec is None or spec.shape in ((), (1,)) or entry.name in self.constants:
                continue
            if entry.status in looks:
                looks[entry.status][spec[:2]] += 1
            elif entry.values is None or entry.how or (entry.values.cosine or 0.0) > SIMILAR:
                alike += 1
            else:
                unlike += 1
        unlike += (looks["added"] & looks["removed"]).total()
        return self.read and unlike > max(1, 3 * alike)

    def _counts(self, entry: Entry) -> bool:
        if entry.status in ("added", "removed"):
            return entry.name not in self.constants
        return entry.status == "changed"
