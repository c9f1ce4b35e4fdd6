"""Deciding a conversion: what is written where, what changes, what is lost. Touches nothing."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.core.codes import CODES
from ckptkit.core.collector import paused
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.expansion import MAX_EXPAND, refuse_expansion
from ckptkit.core.findings import Finding
from ckptkit.core.globs import matching, selected
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import External, Layout, OutputFile, Ties, WriteOptions
from ckptkit.core.staging import names_beside, refuse_inputs
from ckptkit.core.stream import memory_bound
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.format import folder, read, registry
from ckptkit.match.quantized import quantized_members, torn_units
from ckptkit.rules.follow import follow
from ckptkit.rules.outcome import Rewrite, RulesError, Trace
from ckptkit.rules.ruleset import Rules, compare
from ckptkit.targets.factory import refuse_code

if TYPE_CHECKING:
    from ckptkit.match.fitting import Fitting, Mismatched
    from ckptkit.match.proof.proving import Reference
    from ckptkit.targets.resolve import Given
    from ckptkit.verbs.convert.into import Into

CASTABLE = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion decided completely; nothing has been written.

    Attributes:
        source: the graph as read, all selected tensors under their names in the file.
        graph: the graph as it will be written: selected, renamed, cast.
        target: path of the output; a folder if `folder`.
        format: registry name of the format written.
        layout: the output files with every offset.
        names: name written → name read (the first of several; "" for what the rules filled).
        trace: name written → all its sources, the rule and the operations that made it.
        cast: names (as written) whose dtype changes, with the dtype they had.
        left_out: what was not selected and is not carried, in words.
        losses: what cannot be carried; each code must be in `allowed` for `write` to start.
        notes: what else is worth telling.
        memory: upper bound in bytes of the buffers held while writing.
        into: the graph that the weights go into, if not one of their own; `name_map` is where its map goes.
        fit: what became of each tensor of the target that the graph was fitted to.
        reference: what the model written must give the same outputs as, before it is put in place.
    """

    source: TensorGraph
    graph: TensorGraph
    target: str
    folder: bool
    format: str
    layout: Layout
    names: Mapping[str, str]
    trace: Mapping[str, Trace]
    cast: Mapping[str, str]
    left_out: tuple[str, ...]
    losses: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    allowed: frozenset[str]
    memory: int
    sidecar: str | None = None
    extras: tuple[OutputFile, ...] = ()
    into: "Into | None" = None
    name_map: str | None = None
    reference: "Reference | None" = None
    fit: "Fitting | None" = None

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """Every file that will be written, side files of a folder included; the target's own file last."""
        return (*self.extras, *self.layout.files)

    @property
    def inputs(self) -> tuple[TensorGraph, ...]:
        """Every checkpoint that is read, the source first."""
        return (self.source, *(self.into.inputs if self.into else ()))

    @property
    def nbytes(self) -> int:
        """Bytes of all output files."""
        return sum(f.size for f in self.files)

    def refusal(self) -> CkptError | None:
        """Why `write` would refuse: the losses that were not allowed."""
        refused = [loss for loss in self.losses if loss.code not in self.allowed]
        if not refused:
            return None
        first = refused[0]
        codes = list(dict.fromkeys(loss.code for loss in refused))
        accept = " ".join(f"--allow-loss {code}" for code in codes)
        hint = first.hint if first.hint and len(codes) == 1 else f"{accept} accepts it"
        return CkptError(first.code, first.message, first.where, hint)


@paused()
def plan(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str | None = None,
    section: str | None = None,
    variant: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rules: Sequence[str | Rules] = (),
    let: Mapping[str, str | int] | None = None,
    reverse: bool = False,
    approximate: bool = False,
    like: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    keep_dtype: Sequence[str] = (),
    ties: Ties = "keep",
    max_shard_size: int | None = None,
    external: External = "auto",
    metadata: Mapping[str, str] | None = None,
    no_metadata: bool = False,
    allow_loss: Sequence[str] = (),
    max_expand: float = MAX_EXPAND,
    sidecar: str | os.PathLike[str] | None = None,
    with_code: bool = False,
    fit: "Given | None" = None,
    mismatched: "Mismatched | None" = None,
    into: str | os.PathLike[str] | None = None,
    exported_from: str | os.PathLike[str] | None = None,
    allow_head_change: bool = False,
    name_map: str | os.PathLike[str] | None = None,
    prove: bool = False,
    module: str | None = None,
    allow_code: bool = False,
    time_limit: float | None = None,
) -> Plan:
    """Decide a conversion without writing anything.

    Args:
        src: file, folder or index to read.
        dst: file or folder to write; its suffix names the format unless `to` does. A path without a suffix
            or with a trailing slash is a folder.
        to: registry name of the format to write.
        section, variant: as for `ckptkit.read`.
        include, exclude: shell patterns over the names as read.
        rules: rule files, names of presets, `auto`, `strip:PREFIX` or `add:PREFIX`, applied in order.
        let: values for names that the rules declare under `let`.
        reverse: apply the rules backwards, the last one first; `approximate` accepts rounding in that.
        like: a checkpoint whose names and shapes the result must have. `auto` finds the rules that give them, and what
            rules to be undone do not state, such as the sizes of joined parts, is read off it.
        dtype: cast float64, float32, float16 and bfloat16 tensors to this dtype.
        keep_dtype: shell patterns (names as read) of tensors that keep theirs.
        ties: write tied tensors once where the format can (`keep`), once per name (`copy`), or refuse.
        max_shard_size: greatest size of one file in bytes; needs a folder as target.
        external: ONNX weights inside the model (`inline`), beside it (`external`, `safetensors`), where they lie in the
            target's folder (`shared`), or as the source has it (`auto`).
        metadata: keys to set; `no_metadata` drops what the source has first.
        allow_loss: codes of losses that are accepted.
        max_expand: refuse to write more than this many times the stored bytes (beyond 1 GiB).
        sidecar: JSON file for the non-tensor objects.
        with_code: a folder's `*.py` files are copied too.
        fit: a target as for `check`, which the result is to fit, after the rules. What fits is carried over, what
            the target has no place for is dropped.
        mismatched: what becomes of tensors that have another shape there, or are missing: `drop`, `zeros` or `keep`
            (see `ckptkit.match.fitting.fitting`). Without it they are an error.
        into: ONNX model whose graph the weights go into, its own weights replaced; DST gets that graph.
        exported_from: the checkpoint that `into` was exported from, by which renamed, transposed, joined and folded
            weights are found; without it names decide.
        allow_head_change: with `into`, the last layer of the graph may get another number of classes.
        name_map: JSON file for the map from weights of the graph to those of the checkpoint.
        prove: run the ONNX model written, and its source, or a `module` (`package.module:factory`) with the weights
            of the source; different outputs are an error. A module, as here or for `fit`, needs `allow_code`.
        time_limit: seconds that making a model for `fit` may take; 60 if nothing is said.

    Raises:
        CkptError: the source cannot be read or the target not be written in that format.
    """
    _refuse_unknown(allow_loss)
    whole = read(src, section, variant=variant)
    names = selected(whole, include, exclude)
    source = whole.select(names) if len(names) < len(whole) else whole
    _refuse_nothing(whole, source)
    model = None if like is None else read(like)
    rewrite = follow(source, rules, let=let, reverse=reverse, approximate=approximate, like=model)
    if model is not None:
        _refuse_unlike(rewrite.graph, model)
    fitted: Fitting | None = None
    if fit is not None:
        if into is not None:
            raise CkptError("usage", "a graph has its own names and shapes", str(into), "leave --fit out")
        from ckptkit.verbs.convert.fitted import fit_to

        fitted, rewrite = fit_to(rewrite, fit, mismatched, allow_code, time_limit)
    elif mismatched is not None:
        raise CkptError("usage", "--mismatched goes with a target", None, "--fit TARGET")
    graph = rewrite.graph
    original = {name: step.sources[0] if step.sources else "" for name, step in rewrite.trace.items()}
    keep = frozenset(matching(source, keep_dtype)) if keep_dtype else frozenset()
    target, into_folder, writer = _target(dst, to)
    if dtype is not None and writer.name == "onnx" and into is None:
        keep |= _fixed(graph, dtype)
    graph, cast = _cast(rewrite, dtype, keep)
    reference = _reference(source, graph, module, allow_code) if prove else None
    if module is not None and not prove:
        raise CkptError("usage", "--module is what a model is proved against", module, "--prove")
    put: Into | None = None
    if into is not None and dtype is not None:
        raise CkptError(
            "usage", "weights get the dtypes of the graph they go into", None, "leave --dtype out"
        )
    if into is not None:
        from ckptkit.verbs.convert.into import casts, put_into

        read_weights = graph
        given = replace(rewrite, graph=graph)
        put, rewrite = put_into(given, into, exported_from, section, include, exclude, allow_head_change)
        graph, cast = rewrite.graph, casts(put, read_weights)
        original = {name: step.sources[0] if step.sources else "" for name, step in rewrite.trace.items()}
    elif exported_from is not None or name_map is not None or allow_head_change:
        option = "--allow-head-change" if allow_head_change else "--name-map"
        option = option if exported_from is None else "--exported-from"
        raise CkptError("usage", f"{option} goes with a graph to put weights into", None, "--into BASE.onnx")
    kept = _kept(graph, cast, writer.name) if dtype else ()
    graph = replace(graph, metadata=_metadata(graph, metadata, no_metadata))
    stored = graph.origin.stored
    meant = f"--max-expand {graph.nbytes // max(stored, 1) + 1} if that is meant"
    refuse_expansion(graph.nbytes, stored, graph.origin.path, meant, limit=max_expand)

    if external != "auto" and writer.name != "onnx":
        raise CkptError(
            "option-unfit", f"{writer.title} has no weights outside its file", target, "drop --onnx-data"
        )
    taken = frozenset[str]() if into_folder else names_beside(target)
    options = WriteOptions(
        ties=ties,
        max_shard_size=max_shard_size,
        external=external,
        taken=taken,
        folder="" if into_folder else os.path.realpath(target.parent),
    )
    stem = folder.weights_name(writer.name, graph) if into_folder else target.name
    layout = writer.load().layout(graph, stem, options)
    notes: tuple[Finding, ...] = ()
    if put is not None:
        if writer.name != "onnx":
            raise CkptError("usage", "a graph with new weights is written as ONNX", str(target), "--to onnx")
        from ckptkit.verbs.convert.into import settled

        layout, unchanged = settled(layout, put)
        notes = (unchanged,)
    if not into_folder and writer.name != "onnx" and len(layout.files) > 1:
        suited = "" if writer.name == "safetensors" else f" --to {writer.name}"
        hint = f"write to the folder {target.stem}/{suited}"
        raise CkptError("needs-folder", "several files need a folder to stand in", target, hint)
    config = None
    if fitted is not None:
        from ckptkit.verbs.convert.fitted import configuration

        config = configuration(fitted)
    extras = folder.companions(graph, writer.name, dtype, with_code, config) if into_folder else ()
    if fitted is not None:
        from ckptkit.verbs.convert.fitted import little, stale

        notes = (*notes, *little(fitted), *stale(fitted, extras))
    result = Plan(
        source=source,
        graph=graph,
        target=str(target),
        folder=into_folder,
        format=writer.name,
        layout=layout,
        names=original,
        trace=rewrite.trace,
        cast=cast,
        left_out=(
            *_left_out(whole, source, rewrite, extras, sidecar is not None),
            *(put.left_out if put else ()),
        ),
        losses=(*_torn(whole, names), *(put.done.losses if put else ()), *layout.losses),
        notes=(
            *(f for f in whole.findings if f not in layout.losses),
            *rewrite.findings,
            *kept,
            *layout.notes,
            *notes,
        ),
        allowed=frozenset(allow_loss),
        memory=max(map(memory_bound, layout.files), default=0),
        sidecar=None if sidecar is None else os.fspath(sidecar),
        extras=extras,
        into=put,
        name_map=None if name_map is None else os.fspath(name_map),
        reference=reference,
        fit=fitted,
    )
    if reference is not None and writer.name != "onnx":
        raise CkptError("usage", "only an ONNX model is proved", result.target, "leave --prove out")
    targets = [result.target, *filter(None, [result.sidecar, result.name_map])]
    for read_one in filter(None, (whole, model, *result.inputs[1:])):
        refuse_inputs(read_one, targets)
    if fitted is not None:
        from ckptkit.verbs.convert.fitted import refuse_target

        refuse_target(fitted, targets)
    return result


def _refuse_unlike(graph: TensorGraph, model: TensorGraph) -> None:
    """Raise unless the names and shapes are those of the model; a dtype is for `dtype` to change."""
    unlike = [finding for finding in compare(graph, model) if finding.severity == "error"]
    if unlike:
        raise RulesError(unlike)


def _reference(
    source: TensorGraph, weights: TensorGraph, module: str | None, allow_code: bool
) -> "Reference":
    """What the output is proved against: the module, with the weights that are written, or the source."""
    from ckptkit.match.proof.proving import Reference

    if module is not None:
        refuse_code(module, allow_code)
        return Reference(module=module, weights=weights)
    if not source.nodes:
        raise CkptError(
            "usage",
            "weights alone give no outputs to prove against",
            source.origin.path,
            "--module package.module:factory makes the module they are for",
        )
    return Reference(against=source.origin.path)


def _fixed(graph: TensorGraph, dtype: str) -> frozenset[str]:
    """Names of the weights that a graph cannot have in another dtype, or had better not have."""
    wanted = DTYPES.get(dtype)
    if graph.origin.format != "onnx" or wanted is None or wanted.kind != "float":
        return frozenset()
    from ckptkit.format.onnx.casts import fixed

    return fixed(graph, wanted)


def _cast(rewrite: Rewrite, dtype: str | None, keep: frozenset[str]) -> tuple[TensorGraph, dict[str, str]]:
    """The graph with float tensors cast, and name → dtype it had. Quantised weights and their scales stay."""
    graph = rewrite.graph
    if dtype is None:
        return graph, {}
    wanted = DTYPES.get(dtype)
    if wanted is None or wanted.kind != "float" or wanted.bits < 8:
        raise CkptError("dtype-unknown", "cannot cast to this dtype", dtype, f"one of {', '.join(CASTABLE)}")
    from ckptkit.ops.cast import cast

    fixed = keep | quantized_members(graph)
    for names in graph.storages():  # tied tensors are one: they keep their dtype together
        if len(names) > 1 and not fixed.isdisjoint(names):
            fixed |= frozenset(names)
    tensors: dict[str, Tensor] = {}
    changed: dict[str, str] = {}
    for name, tensor in graph.items():
        had = tensor.dtype.name
        if had in CASTABLE and had != dtype and fixed.isdisjoint((name, *rewrite.trace[name].sources)):
            changed[name] = had
            tensor = cast(tensor, wanted)
        tensors[name] = tensor
    return replace(graph, tensors=tensors), changed


def _kept(graph: TensorGraph, cast: Mapping[str, str], target: str) -> tuple[Finding, ...]:
    """A note of what a cast leaves alone, by dtype."""
    left = Counter(tensor.dtype.name for name, tensor in graph.items() if name not in cast)
    if not left:
        return ()
    text = f"not cast: {', '.join(f'{n} ×{c}' for n, c in left.items())}"
    if target == "onnx":
        text += " (a graph keeps weights of fewer than 256 values, its inputs and its outputs)"
    return (Finding("dtype-kept", "note", "", text),)


def _torn(whole: TensorGraph, names: Sequence[str]) -> tuple[Finding, ...]:
    """The loss of a selection that takes a quantised weight without its scales, or scales without their weight."""
    torn = torn_units(whole, frozenset(names)) if len(names) < len(whole) else []
    if not torn:
        return ()
    message = f"a quantised weight means nothing without its scales; {torn[0][1]} is not selected"
    return (Finding("scales-left-out", "warning", torn[0][0], message),)


def _metadata(graph: TensorGraph, added: Mapping[str, str] | None, drop: bool) -> dict[str, str]:
    return {**({} if drop else graph.metadata), **(added or {})}


def _refuse_nothing(whole: TensorGraph, source: TensorGraph) -> None:
    """An empty selection of a checkpoint that has tensors is a mistake; one of a checkpoint without is what it is."""
    outside = next((f for f in whole.findings if f.code == "tensors-outside"), None)
    if source or not (whole or outside):
        return
    message = "no tensor is selected" + (f": {outside.message}" if outside and not whole else "")
    hint = outside.hint if outside and not whole else "--exclude leaves out every tensor"
    raise CkptError("nothing-selected", message, whole.origin.path, hint)


def _refuse_unknown(codes: Sequence[str]) -> None:
    for code in codes:
        if code not in CODES:
            from difflib import get_close_matches

            near = get_close_matches(code, CODES, n=3)
            raise CkptError("option-unfit", "there is no loss of this code", code, " or ".join(near) or None)


def _target(dst: str | os.PathLike[str], to: str | None) -> tuple[Path, bool, registry.Format]:
    """Where the output goes, whether that is a folder, and the format that writes it."""
    text = os.fspath(dst)
    path = Path(text)
    by_suffix = registry.for_suffix(path.name)
    into_folder = (
        text.endswith(("/", os.sep)) or os.path.isdir(path) or (by_suffix is None and not path.suffix)
    )
    if to is not None:
        chosen = registry.named(to)
    elif into_folder:
        chosen = registry.named("safetensors")
    elif by_suffix is None:
        raise CkptError(
            "format-unknown",
            f"no format is written to {path.suffix} files",
            text,
            "--to FORMAT names it; see ckptkit formats",
        )
    else:
        chosen = by_suffix
    if not chosen.writes:
        raise CkptError("not-writable", f"{chosen.title} is read, not written", text, "see ckptkit formats")
    return path, into_folder, chosen


def _left_out(
    whole: TensorGraph, source: TensorGraph, rewrite: Rewrite, extras: Sequence[OutputFile], sidecar: bool
) -> tuple[str, ...]:
    out = []
    chosen = whole.origin.section
    if chosen:
        out += [s.name for s in whole.origin.sections if s.name != chosen]
    if len(source) < len(whole):
        out.append(f"{plural(len(whole) - len(source), 'tensor')} by --include/--exclude")
    if rewrite.dropped:
        out.append(f"{plural(len(rewrite.dropped), 'tensor')} by the rules")
    if whole.objects and not sidecar:
        values = plural(len(whole.objects), "non-tensor value")
        out.append(f"{values} (--sidecar FILE.json keeps what JSON can hold)")
    carried = {file.path for file in extras}
    out += [name for name in folder.others(whole) if name not in carried and not name.endswith(".index.json")]
    return tuple(out)
