"""Tables for people: the tensors folded by layer, their statistics, the values that are no tensors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ckptkit.cli.text import (
    Terminal,
    clean,
    columns,
    count,
    number,
    pad,
    shape,
    shorten,
    size,
)
from ckptkit.core.graph import Leaf
from ckptkit.core.names import Branch, fold
from ckptkit.core.tensor import Tensor

if TYPE_CHECKING:
    from ckptkit.core.numeric import Statistics

HEADING = 8  # lines below a prefix that make it a heading of its own
COLUMN = 100  # longest labels that the columns of a pipe make room for
FINITE = "min, max, mean and std are of the finite values"
COMMON = 20  # tensors with one note before it is told once for all of them


class Look(NamedTuple):
    """What tensors of one folded line have in common."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    tied: bool  # its bytes are those of another name
    note: str


class Row(NamedTuple):
    """One line of the tree."""

    label: str
    dtype: str = ""
    shape: str = ""
    nbytes: str = ""
    more: str = ""
    heading: bool = False


def tree(tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> list[Row]:
    """The tensors as lines, repeated layers folded."""
    common = common_notes(tensors)
    numbers: dict[tuple[object, ...], int] = {}
    looks: list[Look] = []

    def look(name: str, tensor: Tensor) -> int:
        """The number of the tensor's look: folding compares it for every name."""
        note = tensor.note if tensor.note not in common else ""
        key: tuple[object, ...] = (tensor.dtype.name, tensor.shape, name in ties, note)
        if not tensor.dtype.bits:
            key = (*key, tensor.nbytes)  # the size of strings varies
        number = numbers.get(key)
        if number is None:
            number = numbers[key] = len(looks)
            looks.append(Look(tensor.dtype.name, tensor.shape, tensor.nbytes, name in ties, note))
        return number

    folded = fold((name, look(name, tensor)) for name, tensor in tensors.items())
    rows: list[Row] = []
    for branch in folded:
        _add(rows, branch, "", "", "", 1, looks, ties)
    return rows


def common_notes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Notes that so many tensors carry that they are told once, with how many."""
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.note:
            counts[tensor.note] = counts.get(tensor.note, 0) + 1
    return {note: times for note, times in counts.items() if times > COMMON}


def _add(
    rows: list[Row],
    branch: Branch,
    indent: str,
    above: str,
    path: str,
    copies: int,
    looks: Sequence[Look],
    ties: Mapping[str, str],
) -> None:
    """Append the lines of a branch: `above` is what of its names stands in headings, `path` what follows it;
    `copies` is how many paths those two stand for."""
    label = path + branch.label
    copies *= branch.copies
    shown = clean(label.removeprefix(".") if above else label) or '""'
    if not branch.children:
        rows.append(_leaf(indent + shown, branch, copies, above + label, looks, ties))
    elif branch.lines >= (3 if branch.copies > 1 else HEADING):
        total = copies // branch.copies * _total(branch, looks)
        rows.append(Row(indent + shown, nbytes=size(total), heading=True))
        for child in branch.children:
            _add(rows, child, indent + "  ", above + label, "", copies, looks, ties)
    else:
        for child in branch.children:
            _add(rows, child, indent, above, label, copies, looks, ties)


def _leaf(
    label: str, branch: Branch, copies: int, name: str, looks: Sequence[Look], ties: Mapping[str, str]
) -> Row:
    look = looks[branch.signature]
    more = [f"×{copies}"] if copies > 1 else []
    if look.tied:
        more.append(f"= {clean(ties[name])}" if name in ties else "tied")
    if look.note:
        more.append(clean(look.note))
    return Row(label, look.dtype, shape(look.shape), size(look.nbytes), "  ".join(more))


def _total(branch: Branch, looks: Sequence[Look]) -> int:
    """Logical bytes below a branch, tied tensors not counted again."""
    if branch.children:
        return branch.copies * sum(_total(child, looks) for child in branch.children)
    look = looks[branch.signature]
    return 0 if look.tied else look.nbytes * branch.names


def table(rows: Sequence[Row], terminal: Terminal) -> Iterator[str]:
    """Lines of a tree, aligned. In a narrow terminal labels are shortened in the middle, numbers never."""
    if not rows:
        return
    cells = [row[:5] for row in rows]
    label, dtype, dims, nbytes, more = (max(map(columns, column)) for column in zip(*cells, strict=True))
    if terminal.width is None:
        label = min(label, COLUMN)
    else:
        taken = 2 + dtype + 2 + dims + 2 + nbytes + (1 + min(more, 6) if more else 0)
        label = max(min(label, terminal.width - taken - 2), 16)
    for row in rows:
        name = pad(row.label if terminal.width is None else shorten(row.label, label), label)
        line = f"  {name}  {pad(row.dtype, dtype)}  {pad(row.shape, dims)}  {pad(row.nbytes, nbytes, right=True)}"
        if row.more:
            line = f"{line} {row.more}"
        if terminal.width is not None and columns(line) > terminal.width:
            line = line[: terminal.width - 1] + "…" if line.isascii() else shorten_end(line, terminal.width)
        yield terminal.paint(line.rstrip(), "bold") if row.heading else line.rstrip()


def measured_table(
    tensors: Mapping[str, Tensor], measured: "Mapping[str, Statistics | None]", terminal: Terminal
) -> Iterator[str]:
    """One line per tensor with its statistics."""
    if not tensors:
        return
    rows: list[list[str]] = [["", "min", "max", "mean", "std", ""]]
    for name, tensor in tensors.items():
        values = measured[name]
        if values is None:
            rows.append([clean(name), "", "", "", "", f"no numbers: {tensor.dtype.name}"])
            continue
        measures = (number(v, 3) for v in (values.minimum, values.maximum, values.mean, values.std))
        rows.append([clean(name), *measures, "  ".join(_oddities(tensor, values))])
    label, *widths, oddities = (max(map(columns, column)) for column in zip(*rows, strict=True))
    if terminal.width is not None:
        label = max(min(label, terminal.width - 4 - sum(widths) - 2 * len(widths) - min(oddities, 7)), 16)
    for name, *cells, oddity in rows:
        numbers = "  ".join(pad(c, w, right=True) for c, w in zip(cells, widths, strict=True))
        line = f"  {pad(shorten(name, label), label)}  {numbers}  {oddity}".rstrip()
        yield line if terminal.width is None else shorten_end(line, terminal.width)
    if any(map(odd, measured.values())):
        yield f"  {FINITE}" if terminal.width is None else shorten_end(f"  {FINITE}", terminal.width)


def odd(values: "Statistics | None") -> bool:
    """Whether there are values that the figures leave out."""
    return values is not None and bool(values.nan or values.inf)


def _oddities(tensor: Tensor, values: "Statistics") -> Iterator[str]:
    if values.nan:
        yield f"{count(values.nan)} NaN"
    if values.inf:
        yield f"{count(values.inf)} Inf"
    if values.zeros:
        share = 100 * values.zeros / max(tensor.size, 1)
        yield "all 0" if values.zeros == tensor.size else f"{share:.0f} % 0" if share >= 1 else "some 0"


def shorten_end(text: str, width: int) -> str:
    """The first columns of a text, with a mark where the rest is left out."""
    if columns(text) <= width:
        return text
    text = text[: width - 1]
    while columns(text) > width - 1:
        text = text[:-1]
    return text + "…"


def objects(leaves: Sequence[Leaf], terminal: Terminal) -> Iterator[str]:
    """Every non-tensor value: path, type, value."""
    width = min(max((columns(clean(leaf.path)) for leaf in leaves), default=0), 60)
    kinds = min(max((columns(clean(leaf.type)) for leaf in leaves), default=0), 40)
    for leaf in leaves:
        path = clean(leaf.path) if terminal.width is None else shorten(clean(leaf.path), terminal.width // 2)
        line = f"  {pad(path, width)}  {pad(clean(leaf.type), kinds)}  {value(leaf)}".rstrip()
        yield line if terminal.width is None else shorten_end(line, terminal.width)


def value(leaf: Leaf) -> str:
    """A non-tensor value in at most 60 columns."""
    return "(not run)" if leaf.opaque else "" if leaf.value is None else brief(leaf.value)


def brief(content: object) -> str:
    """A plain value in at most 60 columns."""
    text = content if isinstance(content, str) else repr(content)
    return shorten(clean(text[:1000]), 60)
