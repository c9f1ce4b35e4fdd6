"""A checkpoint on the terminal: the answer, the facts, then the tensors folded by layer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ckptkit.cli.text import (
    Terminal,
    clean,
    columns,
    count,
    finding_text,
    number,
    pad,
    plural,
    shape,
    shorten,
    size,
)
from ckptkit.core.graph import Leaf, TensorGraph, Value
from ckptkit.core.names import Branch, fold
from ckptkit.core.tensor import Tensor
from ckptkit.verbs.inspect import Summary

if TYPE_CHECKING:
    from ckptkit.core.numeric import Statistics

HEADING = 8  # lines below a prefix that make it a heading of its own
FEW = 8  # facts of one kind shown before "and N more"
COLUMN = 100  # longest labels that the columns of a pipe make room for
OVERHEAD = 1_000  # bytes that a container may take for each tensor
SLACK = 1.05  # stored and logical bytes closer than this are the same
LIMIT = 20  # findings and ties shown one by one


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
    return {note: times for note, times in counts.items() if times > LIMIT}


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
    label, *widths, odd = (max(map(columns, column)) for column in zip(*rows, strict=True))
    if terminal.width is not None:
        label = max(min(label, terminal.width - 4 - sum(widths) - 2 * len(widths) - min(odd, 7)), 16)
    for name, *cells, oddity in rows:
        numbers = "  ".join(pad(c, w, right=True) for c, w in zip(cells, widths, strict=True))
        line = f"  {pad(shorten(name, label), label)}  {numbers}  {oddity}".rstrip()
        yield line if terminal.width is None else shorten_end(line, terminal.width)


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
    while columns(text) > width - 1:
        text = text[:-1]
    return text + "…"


def facts(graph: TensorGraph, summary: Summary, title: str, terminal: Terminal, quiet: bool) -> Iterator[str]:
    """What a checkpoint is, in a few lines: the answer first."""
    yield from _answer(graph, summary, title, terminal)
    for key, values in (
        ("looks like", _scheme(summary)),
        ("wrapped in", _wrappers(summary)),
        ("quantised", [f"{q.family} ({plural(q.weights, 'weight')})" for q in summary.quantized]),
        ("sections", _sections(graph)),
        ("stored", _stored(graph, summary)),
        ("ties", _ties(summary)),
        ("graph", _operators(graph)),
        ("inputs", _values(graph.inputs, graph.tensors)),
        ("outputs", _values(graph.outputs, {})),
        ("tensors", [f"{clean(note)} ×{n}" for note, n in common_notes(graph.tensors).items()]),
        ("metadata", _metadata(graph.metadata)),
        ("objects", _objects(graph.objects)),
        ("not run", _not_run(graph)),
    ):
        if values:
            yield from terminal.fact(key, values)
    shown = [f for f in graph.findings if not quiet or f.severity != "note"]
    for finding in shown[:LIMIT]:
        yield from terminal.prose(finding.severity, finding_text(finding))
    if len(shown) > LIMIT:
        yield from terminal.prose("note", f"{len(shown) - LIMIT} more findings; --json lists them all")


def _answer(graph: TensorGraph, summary: Summary, title: str, terminal: Terminal) -> Iterator[str]:
    container = graph.origin.container
    what = title if container in ("", title) else clean(f"{title}, {container}")
    values = [what, size(summary.nbytes), plural(summary.tensors, "tensor")]
    if summary.parameters:
        unit = "parameter" if summary.parameters == 1 else "parameters"
        values.append(f"{count(summary.parameters)} {unit}")
    shares = summary.dtypes
    if len(shares) == 1:
        values += shares
    elif shares:
        texts = [f"{dtype} ×{tensors}" for dtype, (tensors, _) in shares.items()]
        values.append(", ".join(_few(texts, len(texts), FEW // 2)))
    path = clean(graph.origin.path)
    line = f"{path}   {' · '.join(values)}"
    if terminal.width is None or columns(line) <= terminal.width:
        yield line.replace(path, terminal.paint(path, "bold"), 1)
        return
    yield terminal.paint(shorten(path, terminal.width), "bold")
    yield from terminal.fact("", values)


def _scheme(summary: Summary) -> list[str]:
    naming = summary.naming
    if not naming.scheme:
        return []
    sizes = [f"{n} {what}" if what in _PLURAL else f"{what} {n}" for what, n in naming.sizes]
    return [", ".join([f"{naming.scheme} ({naming.family} names)", *sizes])]


def _wrappers(summary: Summary) -> list[str]:
    """What stands around the names, and how to take off what stands before them."""
    wrappers = summary.naming.wrappers
    before = "".join(w for w in wrappers if not w.startswith("…"))
    hint = [f"convert --rules strip:{before} takes it off"] if before else []
    return ["".join(wrappers), *hint] if wrappers else []


_PLURAL = ("layers", "heads", "key/value heads", "experts", "classes", "positions")


def _sections(graph: TensorGraph) -> list[str]:
    chosen = graph.origin.section
    return [
        f"{clean(s.name) or '(top)'} {size(s.nbytes) if s.tensors else ''}".strip()
        + (" (shown)" if s.name == chosen else "")
        for s in graph.origin.sections
    ]


def _stored(graph: TensorGraph, summary: Summary) -> list[str]:
    """Only where stored and logical bytes differ by more than headers and padding."""
    storages = graph.origin.details.get("stored_storages_nbytes", 0)
    shown = sum(section.nbytes for section in graph.origin.sections) or summary.stored
    if storages > shown * SLACK + 100_000:
        return [f"{size(storages)} for {size(shown)} of tensors", "some are slices of larger storages"]
    if summary.slices and summary.stored > summary.nbytes * SLACK:
        few = plural(len(summary.slices), "tensor") + (" is a view" if len(summary.slices) == 1 else " are views")
        return [f"{size(summary.stored)} for {size(summary.nbytes)} of tensors", f"{few} of larger storages"]
    if summary.stored and summary.nbytes > summary.stored * SLACK:
        return [f"{size(summary.stored)} for {size(summary.nbytes)} of tensors", "expanded or compressed"]
    spare = summary.files - summary.stored
    headers = OVERHEAD * summary.tensors
    if not graph.origin.sections and spare > 1_000_000 + headers and spare > summary.files // 10:
        return [f"{size(summary.files)} for {size(summary.nbytes)} of tensors", f"{size(spare)} are no tensor's"]
    return []


def _ties(summary: Summary) -> list[str]:
    ties = [f"{clean(name)} = {clean(first)}" for name, first in list(summary.ties.items())[: FEW // 2]]
    return _few(ties, len(summary.ties), FEW // 2)


def _operators(graph: TensorGraph) -> list[str]:
    histogram = graph.origin.details.get("operators")
    if not histogram:
        return []
    ops = [f"{clean(op)} ×{times}" for op, times in list(histogram.items())[:FEW]]
    return [plural(sum(histogram.values()), "node"), *_few(ops, len(histogram), FEW)]


def _values(values: Iterable[Value], initializers: Mapping[str, Tensor]) -> list[str]:
    """Inputs that are also initializers are weights with a default, as old exporters wrote them."""
    texts = [
        f"{clean(v.name)} {v.dtype} {shape(v.shape) if v.shape is not None else ''}".rstrip()
        for v in values
        if v.name not in initializers
    ]
    return _few(texts[:FEW], len(texts), FEW)


def _metadata(metadata: Mapping[str, str]) -> list[str]:
    texts = [
        "versions of modules" if key == "_metadata" else f"{clean(key)}={shorten(clean(text[:200]), 40)}"
        for key, text in list(metadata.items())[:FEW]
    ]
    return _few(texts, len(metadata), FEW)


def _objects(objects: Sequence[Leaf]) -> list[str]:
    plain = [leaf for leaf in objects if isinstance(leaf.value, (bool, int, float, str)) and not leaf.opaque]
    plain.sort(key=lambda leaf: leaf.path.count("."))  # what stands at the top says most
    texts = [f"{shorten(clean(leaf.path), 40)} {shorten(_short(leaf.value), 40)}" for leaf in plain[: FEW // 2]]
    if not texts:
        return [f"{plural(len(objects), 'value')} (--objects)"] if objects else []
    rest = len(objects) - len(texts)
    return [*texts, f"{rest} more (--objects)"] if rest else texts


def _not_run(graph: TensorGraph) -> list[str]:
    """Classes and functions that the file names; loading it with pickle would have run them."""
    names = graph.origin.details.get("classes_not_run") or ()
    return _few([clean(name) for name in names[:FEW]], len(names), FEW)


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
    return "(not run)" if leaf.opaque else "" if leaf.value is None else _short(leaf.value)


def _short(content: object) -> str:
    text = content if isinstance(content, str) else repr(content)
    return shorten(clean(text[:1000]), 60)


def _few(texts: list[str], total: int, limit: int) -> list[str]:
    return [*texts[:limit], f"{total - limit} more"] if total > limit else texts
