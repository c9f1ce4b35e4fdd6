"""A diff for people: the answer, what was trained and what was not, then the tables, for a terminal or as Markdown."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from ckptkit.cli.difftables import HEAD, ONE_SIDED, Table, prefixes, stat_table, tables
from ckptkit.cli.render import shorten_end
from ckptkit.cli.text import Terminal, clean, columns, pad, shorten
from ckptkit.core.names import Branch, fold
from ckptkit.core.words import plural
from ckptkit.verbs.diff import Diff
from ckptkit.verbs.diff.result import Status

LONG = 24  # paths of frozen or trained layers
_BOTH: tuple[Status, ...] = ("equal", "close", "unread", "changed")
_WORDS = {"equal": "equal", "close": "close enough", "unread": "alike in their headers", "changed": "changed"}


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
    for status, side in ONE_SIDED:
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
    near = any(move.how == "folded" and not move.certain for move in diff.renamed)
    if near or diff.equal or not diff.read or any(e.kinds and e.kinds != ("tie",) for e in diff.entries):
        return []
    left = {
        e.status for e in diff.entries if e.status in ("added", "removed") and e.name not in diff.constants
    }
    if left == {"added", "removed"} or not (diff.renamed or left):
        return []
    if not left:
        return ["the same weights"]
    return ["all weights of A are in B" if "added" in left else "all weights of B are in A"]


def summary(diff: Diff) -> Iterator[tuple[str, list[str]]]:
    """Facts in a word each: what was trained, what was not, what kind of difference it is."""
    trained, frozen = set(diff.trained), set(diff.frozen)
    if trained and frozen:
        both = trained | frozen
        trees = fold((e.name, e.name in trained) for e in diff.entries if e.name in both)
        for key, wanted in (("frozen", False), ("trained", True)):
            found = list(islice(_whole(trees, wanted, ""), LONG + 1))
            yield key, [*found[:LONG], "…"] if len(found) > LONG else found
    if diff.unrelated:
        yield "note", ["these are other weights: hardly anything is equal, or even similar"]
    for (before, after), items in prefixes(diff.renamed).items():
        if len(items) == len(diff.renamed) and not (before and after):
            rule = f"strip:{before}" if before else f"add:{after}"
            yield "hint", [f"--rules {clean(rule)} compares them under the same names"]
    left_out = dict.fromkeys((*diff.a.left_out, *diff.b.left_out))
    if left_out:
        some = [clean(name) for name in islice(left_out, LONG)]
        more = f" and {len(left_out) - LONG} more" if len(left_out) > LONG else ""
        yield "left out", [f"{', '.join(some)}{more} (--section all)"]
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
    numbered = len(rows[0]) == len(HEAD) + 1  # no remarks after the numbers
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
    from ckptkit.cli.markdown import code, escape, table

    yield f"### {diff.verdict}: {code(clean(diff.a.path))} → {code(clean(diff.b.path))}\n"
    yield escape(" · ".join(answer(diff))) + "\n"
    facts = [f"- {key}: {', '.join(map(code if key in ('frozen', 'trained') else escape, values))}"
             for key, values in summary(diff)]  # fmt: skip
    yield from facts
    if facts:
        yield ""
    for found in [stat_table(diff)] if stat else tables(diff, sort):
        width = max(map(len, found.rows), default=1)
        head = (found.title or "module", *(found.head or ("",) * (width - 1)))
        yield from table(
            [*map(escape, head)], ((code(label), *map(escape, cells)) for label, *cells in found.rows)
        )
        yield ""
