"""A diff as tables with repeated layers folded: what changed, what moved, what is on one side only.

The cells are text; `difftext` lays them out for the terminal and as Markdown.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from os.path import commonprefix
from typing import Any, NamedTuple

from ckptkit.cli.text import clean, shape, shorten
from ckptkit.core.names import Branch, fold, natural, unfold
from ckptkit.core.words import plural
from ckptkit.match.values import Values
from ckptkit.verbs.diff import Diff, Entry, Other, Renamed, Side
from ckptkit.verbs.diff.result import Status

FEW = 8  # other differences of one kind shown before "and N more"
HEAD = ("max |Δ|", "max rel", "rms Δ", "cosine", "share")
ONE_SIDED: tuple[tuple[Status, Callable[[Diff], Side]], ...] = (
    ("removed", lambda d: d.a),
    ("added", lambda d: d.b),
)
_DIGITS = re.compile(r"[0-9]+")


class Table(NamedTuple):
    """Rows of text under a title; the first cell is a label, those under a head are numbers."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(diff: Diff, sort: str) -> Iterator[Table]:
    """Everything that differs."""
    told = {move.target for move in diff.renamed if not move.backward}
    changed = _Changed.of([entry for entry in diff.entries if entry.name not in told])
    if changed:
        yield _changed_table(changed, sort)
    if diff.renamed:
        yield Table("renamed", (), _renamed_rows(diff.renamed))
    for status, side in ONE_SIDED:
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
    layouts = (entry.a.layout, entry.b.layout) if "layout" in entry.kinds else ()
    return (entry.kinds, entry.a.dtype, entry.b.dtype, shapes, layouts, entry.values is None, remarks)


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


def _changed_table(changed: list[_Changed], sort: str) -> Table:
    orders: dict[str, Callable[[_Changed], Any]] = {
        "name": lambda line: natural(line.entries[0].name),
        "change": lambda line: -line.largest,
    }
    if sort in orders:
        changed = sorted(changed, key=orders[sort])
    return Table("changed", ("", *HEAD, ""), [_changed_row(line) for line in changed])


def _changed_row(line: _Changed) -> tuple[str, ...]:
    first = line.entries[0]
    counts = [f"×{len(line.entries)}"] if len(line.entries) > 1 or line.equal else []
    counts += [f"{line.equal} equal"] if line.equal else []
    measured = [e.values for e in line.entries if e.values is not None]
    return (line.label, ", ".join(counts), *numbers(measured), "  ".join(_remarks(first, measured)))


def numbers(measured: Sequence[Values]) -> tuple[str, ...]:
    """The distances of several tensors taken together: greatest Δ, overall rms, least cosine, share of elements."""
    if not measured:
        return ("",) * len(HEAD)
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
    if a.layout != b.layout:
        yield f"{clean(a.layout) or '–'} → {clean(b.layout) or '–'}"
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


def prefixes(renamed: Sequence[Renamed]) -> dict[tuple[str, str], list[Renamed]]:
    """(beginning in A, beginning in B) → tensors that are otherwise called alike, where there are many of them."""
    groups: dict[tuple[str, str], list[Renamed]] = {}
    for item in renamed:
        if item.how == "renamed" and not item.backward:
            source, target = item.sources[0], item.target
            alike = len(commonprefix([source[::-1], target[::-1]]))
            rest = source[len(source) - alike :]
            if alike < len(source) and source[-alike - 1] not in "./":  # it begins within a word
                rest = rest[min((at + 1 for c in "./" if (at := rest.find(c)) >= 0), default=alike) :]
            if rest:
                groups.setdefault((source.removesuffix(rest), target.removesuffix(rest)), []).append(item)
    return {ends: items for ends, items in groups.items() if len({_family(i.target) for i in items}) > 2}


def _renamed_rows(renamed: Sequence[Renamed]) -> list[tuple[str, ...]]:
    series = prefixes(renamed)
    rows = [
        (f"{clean(before)}* → {clean(after)}*", f"same bytes  ×{len(items)}")
        for (before, after), items in series.items()
    ]
    told = {item.target for items in series.values() for item in items}
    groups: dict[Hashable, list[Renamed]] = {}
    for item in (item for item in renamed if item.backward or item.target not in told):
        names = tuple(map(_family, (item.target, *item.sources)))
        groups.setdefault((names, item.how, item.certain, item.backward), []).append(item)
    return rows + [_renamed_row(items) for items in groups.values()]


def _renamed_row(items: list[Renamed]) -> tuple[str, ...]:
    first = items[0]
    target = _label([item.target for item in items])
    exactly = {item.text.replace(item.sources[0], "·") for item in items if len(item.sources) == 1}
    remarks = ["same bytes" if first.how == "renamed" else first.how]
    if len(exactly) == 1 and first.how in ("slice", "permuted", "reshaped", "cast"):
        text = clean(exactly.pop())
        remarks[0] = f"slice {text}" if first.how == "slice" else text
    if first.backward and first.how != "renamed":
        remarks[0] += ", from right to left"
    if first.how == "folded":
        furthest = max(item.ulp for item in items)
        distance = f"within {furthest} ulp" if furthest else "exact"
        remarks = [f"batch norm folded in, {distance if first.certain else 'near'}"]
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
    looks = {e.name: (*spec[:2], e.how) for e in entries if (spec := e.b or e.a)}
    for label, names in _folded(looks.items()):
        dtype, dims, how = looks[names[0]]
        remarks = [f"×{len(names)}"] if len(names) > 1 else []
        yield (label, f"{dtype}  {shape(dims)}", "  ".join([*remarks, *filter(None, [clean(how)])]))


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
