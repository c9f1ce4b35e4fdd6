"""Deciding a conversion: what is written where, what changes, what is lost. Touches nothing."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptkit.core.codes import CODES
from ckptkit.core.collector import paused
from ckptkit.core.errors import CkptError
from ckptkit.core.expansion import MAX_EXPAND, refuse_expansion
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import External, Layout, OutputFile, Ties, WriteOptions
from ckptkit.core.staging import names_beside, refuse_inputs
from ckptkit.core.stream import CHUNK, memory_bound
from ckptkit.core.tensor import Tensor
from ckptkit.format import folder, read
from ckptkit.rules.follow import follow
from ckptkit.rules.outcome import RulesError, Trace
from ckptkit.rules.ruleset import Rules, compare
from ckptkit.targets.factory import refuse_code
from ckptkit.verbs.convert.casting import cast_floats
from ckptkit.verbs.convert.destination import Destination, destination
from ckptkit.verbs.convert.selection import select

if TYPE_CHECKING:
    from ckptkit.match.fit.fitting import Fitting, Mismatched
    from ckptkit.match.proof.proving import Reference
    from ckptkit.targets.resolve import Given
    from ckptkit.verbs.convert.into import Into


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
        checks: tensors that rules drop for what they hold, to be compared with that before anything is written.
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
    checks: tuple[tuple[str, Tensor], ...] = ()
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
            (see `ckptkit.match.fit.fitting.fitting`). Without it they are an error.
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
    out = destination(dst, to)
    _refuse_unknown(allow_loss)
    _refuse_misuse(
        ("--mismatched goes with a target", "--fit TARGET", mismatched and fit is None),
        ("a graph has its own names and shapes", "leave --fit out", fit is not None and into is not None),
        ("weights get the dtypes of the graph they go into", "leave --dtype out", dtype and into is not None),
        ("--keep-dtype says what --dtype leaves alone", "--dtype DTYPE", keep_dtype and dtype is None),
        ("--exported-from goes with a graph", "--into BASE.onnx", exported_from is not None and into is None),
        ("--name-map goes with a graph to put weights into", "--into BASE.onnx", name_map and into is None),
        ("--allow-head-change goes with a graph", "--into BASE.onnx", allow_head_change and into is None),
        ("a graph with new weights is written as ONNX", "--to onnx", into is not None and not out.onnx),
        ("--module is what a model is proved against", "--prove", module is not None and not prove),
        ("only an ONNX model is proved", "leave --prove out", prove and not out.onnx),
        (f"{out.format.title} has no weights outside its file", "leave --onnx-data out",
         external != "auto" and not out.onnx),
    )  # fmt: skip
    chosen = select(src, section, variant, include, exclude)
    model = None if like is None else read(like)
    rewrite = follow(chosen.source, rules, let=let, reverse=reverse, approximate=approximate, like=model)
    if model is not None:
        _refuse_unlike(rewrite.graph, model)
    fitted: Fitting | None = None
    if fit is not None:
        from ckptkit.verbs.convert.fitted import fit_to

        fitted, rewrite = fit_to(rewrite, fit, mismatched, allow_code, time_limit)
    cast: dict[str, str] = {}
    if dtype is not None:
        rewrite, cast = cast_floats(rewrite, chosen.source, dtype, keep_dtype, onnx=out.onnx)
    reference = _reference(chosen.source, rewrite.graph, module, allow_code) if prove else None
    put: Into | None = None
    if into is not None:
        from ckptkit.verbs.convert.into import casts, put_into

        weights = rewrite.graph
        put, rewrite = put_into(rewrite, into, exported_from, section, include, exclude, allow_head_change)
        cast = casts(put, weights)
    graph = replace(
        rewrite.graph, metadata={**({} if no_metadata else rewrite.graph.metadata), **(metadata or {})}
    )
    meant = f"--max-expand {graph.nbytes // max(graph.origin.stored, 1) + 1} if that is meant"
    refuse_expansion(graph.nbytes, graph.origin.stored, graph.origin.path, meant, limit=max_expand)

    layout = _laid_out(graph, out, ties, max_shard_size, external)
    notes: tuple[Finding, ...] = ()
    if put is not None:
        from ckptkit.verbs.convert.into import settled

        layout, unchanged = settled(layout, put)
        notes = (unchanged,)
    config = None
    if fitted is not None:
        from ckptkit.verbs.convert.fitted import configuration

        config = configuration(fitted)
    extras = folder.companions(graph, out.format.name, dtype, with_code, config) if out.folder else ()
    if fitted is not None:
        from ckptkit.verbs.convert.fitted import little, stale

        notes = (*notes, *little(fitted), *stale(fitted, extras))
    result = Plan(
        source=chosen.source,
        graph=graph,
        target=str(out.path),
        folder=out.folder,
        format=out.format.name,
        layout=layout,
        names={name: step.sources[0] if step.sources else "" for name, step in rewrite.trace.items()},
        trace=rewrite.trace,
        cast=cast,
        left_out=(
            *chosen.left_out(rewrite, extras, sidecar is not None),
            *(put.left_out if put else ()),
        ),
        losses=(*chosen.losses(), *(put.done.losses if put else ()), *layout.losses),
        notes=(
            *(f for f in chosen.whole.findings if f not in layout.losses),
            *rewrite.findings,
            *layout.notes,
            *notes,
        ),
        allowed=frozenset(allow_loss),
        memory=max(
            [0, *map(memory_bound, layout.files), *(check.memory(CHUNK) for _, check in rewrite.checks)]
        ),
        checks=rewrite.checks,
        sidecar=None if sidecar is None else os.fspath(sidecar),
        extras=extras,
        into=put,
        name_map=None if name_map is None else os.fspath(name_map),
        reference=reference,
        fit=fitted,
    )
    targets = [result.target, *filter(None, [result.sidecar, result.name_map])]
    for read_one in filter(None, (chosen.whole, model, *result.inputs[1:])):
        refuse_inputs(read_one, targets)
    if fitted is not None:
        from ckptkit.verbs.convert.fitted import refuse_target

        refuse_target(fitted, targets)
    return result


def _laid_out(
    graph: TensorGraph, out: Destination, ties: Ties, max_shard_size: int | None, external: External
) -> Layout:
    """Every byte of the output. Raises what the format's own layout raises, and CkptError `needs-folder`."""
    options = WriteOptions(
        ties=ties,
        max_shard_size=max_shard_size,
        external=external,
        taken=frozenset() if out.folder else names_beside(out.path),
        folder="" if out.folder else os.path.realpath(out.path.parent),
    )
    stem = folder.weights_name(out.format.name, graph) if out.folder else out.path.name
    layout = out.format.load().layout(graph, stem, options)
    if not out.folder and not out.onnx and len(layout.files) > 1:
        suited = "" if out.format.name == "safetensors" else f" --to {out.format.name}"
        hint = f"write to the folder {out.path.stem}/{suited}"
        raise CkptError("needs-folder", "several files need a folder to stand in", str(out.path), hint)
    return layout


def _refuse_misuse(*rules: tuple[str, str, object]) -> None:
    """Options that mean nothing without another one, or beside it: (what, next step, whether it is so)."""
    for message, hint, misused in rules:
        if misused:
            raise CkptError("option-unfit", message, None, hint)


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


def _refuse_unknown(codes: Sequence[str]) -> None:
    for code in codes:
        if code not in CODES:
            from difflib import get_close_matches

            near = get_close_matches(code, CODES, n=3)
            raise CkptError("option-unfit", "there is no loss of this code", code, " or ".join(near) or None)
