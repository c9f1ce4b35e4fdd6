"""What a checkpoint is, in a few lines for people: the answer first, then what is worth knowing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckptkit.cli.render import brief, common_notes
from ckptkit.cli.text import Terminal, clean, columns, count, finding_text, shape, shorten, size
from ckptkit.core.graph import Leaf, TensorGraph, Value
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.match.published import described
from ckptkit.verbs.inspect import Summary

FEW = 8  # facts of one kind shown before "N more"
LIMIT = 20  # findings shown one by one
OVERHEAD = 1_000  # bytes that a container may take for each tensor
SLACK = 1.05  # stored and logical bytes closer than this are the same


def facts(graph: TensorGraph, summary: Summary, title: str, terminal: Terminal, quiet: bool) -> Iterator[str]:
    """What a checkpoint is, in a few lines: the answer first."""
    yield from _answer(graph, summary, title, terminal)
    for key, values in (
        ("looks like", _scheme(summary)),
        ("target", _target(summary)),
        ("wrapped in", _wrappers(summary)),
        ("quantised", [f"{q.family} ({plural(q.weights, 'weight')})" for q in summary.quantized]),
        ("sections", _sections(graph)),
        ("stored", _stored(graph, summary)),
        ("ties", _ties(summary)),
        ("graph", _operators(graph)),
        ("inputs", _values(graph.inputs, graph.tensors)),
        ("outputs", _values(graph.outputs, {})),
        ("used by", _users(summary)),
        ("stored as", _casts(summary)),
        ("folded", _names(summary.usage.folded, "named by the exporter") if summary.usage else []),
        ("unused", _names(summary.usage.unused, "used by no node") if summary.usage else []),
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
    container = clean(graph.origin.container)
    if not container.lower().startswith(title.lower()):
        container = f"{title}, {container}" if container else title
    values = [container, _size(graph, summary), plural(summary.tensors, "tensor")]
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


def _size(graph: TensorGraph, summary: Summary) -> str:
    """The tensors' bytes; of one section of several, those of the files too if they hold clearly more."""
    nbytes = size(summary.nbytes)
    if not graph.origin.sections or not _spare(summary):
        return nbytes
    return f"{nbytes} of {'files' if len(graph.origin.files) > 1 else 'a file'} of {size(summary.files)}"


def _spare(summary: Summary) -> int:
    """Bytes of the files that are no tensor's, where they are more than headers and padding can be; else 0."""
    spare = summary.files - summary.stored
    headers = OVERHEAD * summary.tensors
    return spare if spare > 1_000_000 + headers and spare > summary.files // 10 else 0


def _scheme(summary: Summary) -> list[str]:
    """The published model, or whose names they are; and the sizes."""
    naming = summary.naming
    if not naming.scheme:
        return []
    sizes = [
        plural(n, _COUNTED[what], what) if what in _COUNTED else f"{what} {n}"
        for what, n in naming.sizes
        if not naming.known or what not in naming.known.model.sizes
    ]
    if model := described(naming):
        return [model, ", ".join(sizes)] if sizes else [model]
    return [", ".join([f"{naming.scheme} ({naming.family} names)", *sizes])]


def _target(summary: Summary) -> list[str]:
    """What `check` can hold it to, where the file itself names a published model."""
    known = summary.naming.known
    if not summary.stated or (known and known.model.name != summary.stated):
        return []
    return [f"it says that it is {summary.stated}", f"check --target {summary.stated}"]


def _wrappers(summary: Summary) -> list[str]:
    """What stands around the names, and how to take off what stands before them."""
    wrappers = summary.naming.wrappers
    before = "".join(w for w in wrappers if not w.startswith("…"))
    hint = [f"convert --rules strip:{before} takes it off"] if before else []
    return ["".join(wrappers), *hint] if wrappers else []


# What there are several of, and the word for one.
_COUNTED = {
    "layers": "layer",
    "heads": "head",
    "key/value heads": "key/value head",
    "experts": "expert",
    "classes": "class",
    "positions": "position",
}


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
        few = plural(len(summary.slices), "tensor") + (
            " is a view" if len(summary.slices) == 1 else " are views"
        )
        return [f"{size(summary.stored)} for {size(summary.nbytes)} of tensors", f"{few} of larger storages"]
    texts = summary.dtypes.get("string", (0, 0))[1]  # stored with other overhead than they are counted with
    if summary.stored and summary.nbytes - texts > summary.stored * SLACK:
        return [f"{size(summary.stored)} for {size(summary.nbytes)} of tensors", "expanded or compressed"]
    spare = _spare(summary)
    if spare and not graph.origin.sections:
        return [
            f"{size(summary.files)} for {size(summary.nbytes)} of tensors",
            f"{size(spare)} are no tensor's",
        ]
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


def _users(summary: Summary) -> list[str]:
    """The operators that use the tensors, those of the most bytes first."""
    operators = summary.usage.operators if summary.usage else {}
    texts = [
        f"{clean(op)} {size(nbytes)} ×{tensors}" for op, (tensors, nbytes) in list(operators.items())[:FEW]
    ]
    return _few(texts, len(operators), FEW)


def _casts(summary: Summary) -> list[str]:
    casts = summary.usage.casts if summary.usage else {}
    return [f"{stored}, cast to {wanted} ×{times}" for (stored, wanted), times in casts.items()]


def _names(names: Sequence[str], what: str) -> list[str]:
    """How many there are, and the first of them."""
    if not names:
        return []
    shown = [shorten(clean(name), 40) for name in names[: FEW // 2]]
    return [f"{plural(len(names), 'tensor')} {what}", *_few(shown, len(names), FEW // 2)]


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
    texts = [
        f"{shorten(clean(leaf.path), 40)} {shorten(brief(leaf.value), 40)}" for leaf in plain[: FEW // 2]
    ]
    if not texts:
        return [f"{plural(len(objects), 'value')} (--objects)"] if objects else []
    rest = len(objects) - len(texts)
    return [*texts, f"{rest} more (--objects)"] if rest else texts


def _not_run(graph: TensorGraph) -> list[str]:
    """Classes and functions that the file names; loading it with pickle would have run them."""
    names = graph.origin.details.get("classes_not_run") or ()
    return _few([clean(name) for name in names[:FEW]], len(names), FEW)


def _few(texts: list[str], total: int, limit: int) -> list[str]:
    return [*texts[:limit], f"{total - limit} more"] if total > limit else texts
