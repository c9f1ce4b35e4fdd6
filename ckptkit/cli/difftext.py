"""A diff for people: the answer, what was trained and what was not, then tables with repeated layers folded.

The same tables are laid out for the terminal and as Markdown.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple

from ckptkit.cli.render import shorten_end
from ckptkit.cli.text import Terminal, clean, columns, pad, plural, shape, shorten
from ckptkit.core.names import Branch, fold, natural, unfold
from ckptkit.match.values import Values
from ckptkit.verbs.diff import Diff, Entry, Other, Renamed, Side
from ckptkit.verbs.diff.result import Status

LONG = 24  # paths of frozen or trained layers
SIMILAR = 0.9  # cosine; what was trained from one start is far above, what was not far below
FEW = 8  # other differences of one kind shown before "and N more"
_DIGITS = re.compile(r"[0-9]+")


class Table(NamedTuple):
    """Rows of text under a title; the first cell is a label, those under a head are numbers."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def answer(diff: Diff) -> list[str]:
    """The verdict's grounds, most important first."""
    counts = Counter(entry.status for entry in diff.entries)
    common = sum(counts[status] for status in _BOTH)
    values = _kept(diff)
    if common:
        found = [status for status in _BOTH if counts[status]]
        parts = [f"{'all' if counts[s] == common > 1 else counts[s]} {_WORDS[s]}" for s in found]
        values.append(f"{plural(common, 'tensor')} in both: {', '.join(parts)}")
    elif not diff.renamed:
        values.append("no tensor of one is in the other")
    if diff.renamed:
        values.append(f"{len(diff.renamed)} under other names or in other layouts")
    for status, side in _ONE_SIDED:
        weights = counts[status] - sum(e.status == status for e in diff.entries if e.name in diff.constants)
        if weights:
            values.append(f"{weights} only in {clean(side(diff).path)}")
    settings = sum(e.status in ("added", "removed") for e in diff.entries if e.name in diff.constants)
    if settings:
        values.append(f"{plural(settings, 'constant')} beside the weights")
    structure = sum(other.counts for other in diff.other)
    if structure:
        values.append(f"{plural(structure, 'difference')} in the graph")
    return values


def _kept(diff: Diff) -> list[str]:
    """Whether one side has all weights of the other, under whatever names."""
    if diff.equal or not diff.read or any(e.kinds and e.kinds != ("tie",) for e in diff.entries):
        return []
    left = {
        e.status for e in diff.entries if e.status in ("added", "removed") and e.name not in diff.constants
    }
    if left == {"added", "removed"} or not (diff.renamed or left):
        return []
    if not left:
        return ["the same weights"]
    return ["all weights of A are in B" if "added" in left else "all weights of B are in A"]


_BOTH: tuple[Status, ...] = ("equal", "close", "unread", "changed")
_ONE_SIDED: tuple[tuple[Status, Callable[[Diff], Side]], ...] = (
    ("removed", lambda d: d.a),
    ("added", lambda d: d.b),
)
_WORDS = {"equal": "equal", "close": "close enough", "unread": "alike in their headers", "changed": "changed"}


def summary(diff: Diff) -> Iterator[tuple[str, list[str]]]:
    """Facts in a word each: what was trained, what was not, what kind of difference it is."""
    state = {
        e.name: "values" in e.kinds and not e.how
        for e in diff.entries
        if e.a and e.b and "shape" not in e.kinds
    }
    if diff.read and len(set(state.values())) == 2:
        trees = fold(state.items())
        for key, wanted in (("frozen", False), ("trained", True)):
            found = list(islice(_whole(trees, wanted, ""), LONG + 1))
            yield key, [*found[:LONG], "…"] if len(found) > LONG else found
    if _foreign(diff):
        yield "note", ["these are other weights: hardly anything is equal, or even similar"]
    if diff.tolerance is not None:
        yield "tolerance", [f"|a − b| ≤ {diff.tolerance.atol:g} + {diff.tolerance.rtol:g}·|b|"]


def _whole(branches: Iterable[Branch], wanted: bool, path: str) -> Iterator[str]:
    """The shortest paths below which every name is as wanted."""
    for branch in branches:
        found = set(_states((branch,)))
        if wanted not in found:
            continue
        label = path + branch.label
        if len(found) == 1:
            yield clean(label)
        else:
            yield from _whole(branch.children, wanted, label)


def _states(branches: Iterable[Branch]) -> Iterator[bool]:
    for branch in branches:
        if branch.children:
            yield from _states(branch.children)
        else:
            yield branch.signature


def _foreign(diff: Diff) -> bool:
    """Whether the two hold unrelated values of much the same shapes: hardly anything equal, similar or found again."""
    alike, unlike = len(diff.renamed), 0
    looks: dict[Status, Counter[tuple[object, ...]]] = {"added": Counter(), "removed": Counter()}
    for entry in diff.entries:
        spec = entry.b or entry.a
        if spec is None or spec.shape in ((), (1,)) or entry.name in diff.constants:
            continue
        if entry.status in looks:
            looks[entry.status][spec[:2]] += 1
        elif entry.values is None or entry.how or (entry.values.cosine or 0.0) > SIMILAR:
            alike += 1
        else:
            unlike += 1
    unlike += (looks["added"] & looks["removed"]).total()
    return diff.read and unlike > max(1, 3 * alike)


def tables(diff: Diff, sort: str) -> Iterator[Table]:
    """Everything that differs."""
    changed = _Changed.of(diff.entries)
    if changed:
        yield _changed_table(changed, sort)
    if diff.renamed:
        yield Table("renamed", (), _renamed_rows(diff.renamed))
    for status, side in _ONE_SIDED:
        rows = list(
            _single_rows([e for e in diff.entries if e.status == status and e.name not in diff.constants])
        )
        if rows:
            yield Table(f"only in {clean(side(diff).path)}", (), rows)
    rows = _other_rows(diff)
    if rows:
        yield Table("not in the tensors", (), rows)


@dataclass(frozen=True, slots=True)
class _Changed:
    """Changed entries that are told in one line."""

    label: str
    entries: tuple[Entry, ...]
    equal: int  # tensors that did not change and whose names differ from these in numbers only

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "list[_Changed]":
        by_name = {e.name: e for e in entries if e.status == "changed"}
        if not by_name:
            return []
        equal = Counter(_family(e.name) for e in entries if e.status in ("equal", "close", "unread"))
        return [
            cls(label, tuple(by_name[n] for n in names), sum(equal[f] for f in set(map(_family, names))))
            for label, names in _folded((e.name, _signature(e)) for e in by_name.values())
        ]

    @property
    def largest(self) -> float:
        return max((e.values.max_abs for e in self.entries if e.values), default=float("inf"))


def _family(name: str) -> str:
    return _DIGITS.sub("#", name)


def _signature(entry: Entry) -> Hashable:
    assert entry.a
    assert entry.b
    shapes = (entry.a.shape, entry.b.shape) if "shape" in entry.kinds else ()
    measured = [entry.values] if entry.values else []
    remarks = (bool(_odd(measured)), _only_bits(measured), bool(entry.how))
    return (entry.kinds, entry.a.dtype, entry.b.dtype, shapes, entry.values is None, remarks)


def _folded(names: Iterable[tuple[str, Hashable]]) -> Iterator[tuple[str, list[str]]]:
    """Each line of the folded names: its label, and the names it stands for."""
    waiting: list[tuple[str, list[str], Branch]] = [("", [""], branch) for branch in reversed(fold(names))]
    while waiting:
        label, heads, branch = waiting.pop()
        label += branch.label
        if branch.children:
            heads = [head + path for head in heads for path in branch.paths]
            waiting += [(label, heads, child) for child in reversed(branch.children)]
        else:
            yield clean(label), [head + path for head in heads for path in unfold((branch,))]


_HEAD = ("max |Δ|", "max rel", "rms Δ", "cosine", "share")


def _changed_table(changed: list[_Changed], sort: str) -> Table:
    orders: dict[str, Callable[[_Changed], Any]] = {
        "name": lambda line: natural(line.entries[0].name),
        "change": lambda line: -line.largest,
    }
    if sort in orders:
        changed = sorted(changed, key=orders[sort])
    return Table("changed", ("", *_HEAD, ""), [_changed_row(line) for line in changed])


def _changed_row(line: _Changed) -> tuple[str, ...]:
    first = line.entries[0]
    counts = [f"×{len(line.entries)}"] if len(line.entries) > 1 or line.equal else []
    counts += [f"{line.equal} equal"] if line.equal else []
    measured = [e.values for e in line.entries if e.values is not None]
    return (line.label, ", ".join(counts), *numbers(measured), "  ".join(_remarks(first, measured)))


def numbers(measured: Sequence[Values]) -> tuple[str, ...]:
    """The distances of several tensors taken together: greatest Δ, overall rms, least cosine, share of elements."""
    if not measured:
        return ("",) * len(_HEAD)
    size = sum(v.size for v in measured) or 1
    rms = sqrt(sum(v.size / size * v.rms * v.rms for v in measured))
    cosines = [v.cosine for v in measured if v.cosine is not None]
    return (
        f"{max(v.max_abs for v in measured):.2g}",
        f"{max(v.max_rel for v in measured):.2g}",
        f"{rms:.2g}",
        _cosine(min(cosines)) if cosines else "–",
        _percent(sum(v.changed for v in measured) / size),
    )


def _cosine(value: float) -> str:
    """Near 1 the digits that are no nines matter: `0.99998`, `1 − 3e-09`."""
    return f"{value:.5f}" if value < 0.99999 else f"1 − {1 - value:.0e}" if 1 - value > 1e-14 else "1"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.995 else f"{100 * share:.2g} %"


def _remarks(entry: Entry, measured: Sequence[Values]) -> Iterator[str]:
    a, b = entry.a, entry.b
    assert a
    assert b
    if a.dtype != b.dtype:
        same = "" if "values" in entry.kinds or "shape" in entry.kinds or measured else ", equal values"
        yield f"{a.dtype} → {b.dtype}{same}"
    if a.shape != b.shape:
        yield f"{shape(a.shape)} → {shape(b.shape)}"
    if entry.how == f"{b.dtype}({entry.name})":
        yield "rounded"
    elif entry.how:
        yield f"= {clean(entry.how.replace(entry.name, '·'))}"
    if "values" in entry.kinds and not measured:
        yield "bytes differ"
    elif _only_bits(measured):
        yield "same numbers, other bits"
    yield from _odd(measured)
    if "tie" in entry.kinds:
        yield f"tied to {clean(b.tied_to)}" if b.tied_to else "no longer tied" if a.tied_to else "other ties"


def _only_bits(measured: Sequence[Values]) -> bool:
    """Whether elements changed and no number did: the sign of a zero, the payload of a NaN."""
    return any(v.changed for v in measured) and all(not v.max_abs and v.nan[0] == v.nan[1] for v in measured)


def _odd(measured: Sequence[Values]) -> list[str]:
    """NaN and infinities that appeared or vanished."""
    pairs = [("NaN", [v.nan for v in measured]), ("Inf", [v.inf for v in measured])]
    totals = [(word, sum(a for a, _ in counts), sum(b for _, b in counts)) for word, counts in pairs]
    return [f"{word} {a} → {b}" for word, a, b in totals if a != b]


def _renamed_rows(renamed: Sequence[Renamed]) -> list[tuple[str, ...]]:
    groups: dict[Hashable, list[Renamed]] = {}
    for item in renamed:
        names = tuple(map(_family, (item.target, *item.sources)))
        groups.setdefault((names, item.how, item.certain, item.backward), []).append(item)
    return [_renamed_row(items) for items in groups.values()]


def _renamed_row(items: list[Renamed]) -> tuple[str, ...]:
    first = items[0]
    target = _label([item.target for item in items])
    exactly = {item.text.replace(item.sources[0], "·") for item in items if len(item.sources) == 1}
    remarks = ["same bytes" if first.how == "renamed" else first.how]
    if len(exactly) == 1 and first.how in ("slice", "permuted", "reshaped", "cast"):
        remarks[0] += f" {clean(exactly.pop())}"
    if first.backward and first.how != "renamed":
        remarks[0] += ", from right to left"
    if first.how == "folded":
        furthest = max(item.ulp for item in items)
        remarks = [f"batch norm folded in, {f'within {furthest} ulp' if furthest else 'exact'}"]
    remarks += [f"×{len(items)}"] if len(items) > 1 else []
    remarks += [] if first.certain else [clean(first.why)]
    return (f"{_origin(items)} → {target}", "  ".join(remarks))


def _origin(items: list[Renamed]) -> str:
    """What tensors are made from; several of one module, such as those of a batch norm, as `bn.*`."""
    if items[0].how != "folded":
        folded = [
            label
            for label, _ in _folded((n, None) for n in dict.fromkeys(n for i in items for n in i.sources))
        ]
        if len(folded) <= FEW // 2:
            return " + ".join(folded)
    modules = Counter(source.rpartition(".")[0] for source in items[0].sources)
    labels: dict[str, None] = {}
    for k, source in enumerate(items[0].sources):
        module, dot, _ = source.rpartition(".")
        whole = dot and modules[module] > 1 and items[0].how == "folded"
        names = [item.sources[k] for item in items]
        labels[f"{_label([name.rpartition('.')[0] for name in names])}.*" if whole else _label(names)] = None
    few = list(labels)[:FEW]
    return " + ".join([*few, f"{len(labels) - FEW} more"] if len(labels) > FEW else few)


def _label(names: list[str]) -> str:
    """Names that differ in numbers only, as one text; with `*` for the numbers where they follow no rule."""
    lines = [label for label, _ in _folded((name, None) for name in dict.fromkeys(names))]
    return lines[0] if len(lines) == 1 else clean(_DIGITS.sub("*", names[0]))


def _single_rows(entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    looks = {e.name: spec[:2] for e in entries if (spec := e.b or e.a)}
    for label, names in _folded(looks.items()):
        dtype, dims = looks[names[0]]
        yield (label, f"{dtype}  {shape(dims)}", f"×{len(names)}" if len(names) > 1 else "")


def _other_rows(diff: Diff) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for what in dict.fromkeys(other.what for other in diff.other):
        some = [other for other in diff.other if other.what == what]
        for side, theirs in (
            (diff.a, [o for o in some if o.b is None]),
            (diff.b, [o for o in some if o.a is None]),
        ):
            if len(theirs) > FEW:
                rows.append((what, f"{len(theirs)} only in {clean(side.path)}"))
                some = [other for other in some if other not in theirs]
        rows += [
            (f"{what} {clean(o.name)}".strip(), f"{_brief(o.a)} → {_brief(o.b)}")
            for o in map(_shown, some[:FEW])
        ]
        if len(some) > FEW:
            rows.append((what, f"{len(some) - FEW} more"))
    return rows


def _shown(other: Other) -> Other:
    """Versions of modules, which torch keeps beside a state dict, say nothing to people."""
    if other.what != "metadata" or other.name != "_metadata":
        return other
    a, b = ("versions of modules" if text else None for text in (other.a, other.b))
    return replace(other, a=a, b=b if a != b else "other versions")


def _brief(value: Any) -> str:
    match value:
        case None:
            return "–"
        case {"op": op, "inputs": inputs, "outputs": outputs}:
            value = f"{op}({', '.join(inputs)}) → {', '.join(outputs)}"
        case {"dtype": dtype, "shape": dims}:
            value = f"{dtype} {shape(dims or ())}"
        case {"nodes": count}:
            value = plural(count, "node")
        case {"type": kind, "value": inner}:
            value = kind if inner is None else inner
    return shorten(clean(str(value)[:1000]), 48)


def stat_table(diff: Diff) -> Table:
    """One line per group of modules: how many tensors are equal, changed, added, removed."""
    modules: dict[str, list[Entry]] = {}
    for entry in diff.entries:
        cut = max(entry.name.rfind("."), entry.name.rfind("/"), 0)
        modules.setdefault(entry.name[:cut], []).append(entry)
    rows = []
    for label, names in _folded(
        (m, tuple(sorted(Counter(e.status for e in es).items()))) for m, es in modules.items()
    ):
        entries = [entry for name in names for entry in modules[name]]
        counts = Counter(entry.status for entry in entries)
        cells = [str(counts[s] or "") for s in ("changed", "added", "removed")]
        equal = str(counts["equal"] + counts["close"] + counts["unread"] or "")
        measured = [e.values for e in entries if e.status == "changed" and e.values]
        rows.append((label or "(top)", equal, *cells, numbers(measured)[0]))
    return Table("", ("equal", "changed", "added", "removed", "max |Δ|"), rows)


def text(diff: Diff, terminal: Terminal, *, sort: str, stat: bool) -> Iterator[str]:
    """The whole for a terminal."""
    yield from terminal.fact("alike" if diff.equal and not diff.read else diff.verdict, answer(diff))
    for key, values in summary(diff):
        yield from terminal.fact(key, values, ", " if key in ("frozen", "trained") else " · ")
    for table in [stat_table(diff)] if stat else tables(diff, sort):
        yield from _laid_out(table, terminal)


def _laid_out(table: Table, terminal: Terminal) -> Iterator[str]:
    """Labels on the left, numbers right-aligned, remarks last; in a narrow terminal labels are shortened."""
    rows = [(table.title, *table.head), *table.rows] if table.head else table.rows
    indent = "  "
    widths = [max(columns(row[k]) for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    numbered = len(rows[0]) == len(_HEAD) + 1  # no remarks after the numbers
    if terminal.width is not None:
        taken = len(indent) + sum(2 + width for width in widths[1 : None if numbered else -1])
        widths[0] = min(widths[0], max(terminal.width - taken, 16))
    if not table.head:
        yield terminal.paint(table.title, "bold")
    for number, (label, *cells) in enumerate(rows):
        heading = bool(table.head) and number == 0
        start = pad(label, widths[0] + 2) if heading else indent + pad(shorten(label, widths[0]), widths[0])
        remark = "" if numbered or not cells else cells.pop()
        right = [
            pad(cell, width, right=bool(table.head)) for cell, width in zip(cells, widths[1:], strict=False)
        ]
        line = "  ".join([start, *right]).rstrip() if not remark else "  ".join([start, *right, remark])
        if terminal.width is not None and remark and columns(line) > terminal.width:
            yield shorten_end("  ".join([start, *right]).rstrip(), terminal.width)
            line = f"{indent * 3}{remark}"
        line = line if terminal.width is None else shorten_end(line, terminal.width)
        yield terminal.paint(line, "bold") if heading else line


def markdown(diff: Diff, *, sort: str, stat: bool) -> Iterator[str]:
    """The whole as Markdown, for a comment on a pull request."""
    from ckptkit.cli.markdown import escape, table

    yield f"### {diff.verdict}: `{clean(diff.a.path)}` → `{clean(diff.b.path)}`\n"
    yield escape(" · ".join(answer(diff))) + "\n"
    facts = [f"- {key}: {', '.join(f'`{v}`' if key in ('frozen', 'trained') else escape(v) for v in values)}"
             for key, values in summary(diff)]  # fmt: skip
    yield from facts
    if facts:
        yield ""
    for found in [stat_table(diff)] if stat else tables(diff, sort):
        width = max(map(len, found.rows), default=1)
        head = (found.title or "module", *(found.head or ("",) * (width - 1)))
        yield from table(
            [*map(escape, head)], ((f"`{label}`", *map(escape, cells)) for label, *cells in found.rows)
        )
        yield ""
