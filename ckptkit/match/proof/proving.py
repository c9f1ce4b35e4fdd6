"""Do two models give the same outputs? Both are run on the same inputs and their outputs compared.

Model A is an ONNX file. The reference B is another one, run by onnxruntime too, or a PyTorch module with weights. This
is evidence, not proof in the mathematical sense: it holds for the inputs that were run.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph
from ckptkit.core.staging import Staging
from ckptkit.format import read
from ckptkit.match.proof.compare import TOLERANCES, Compared, Tolerance, compare, leaves, spec
from ckptkit.match.proof.pairing import pair, pair_outputs
from ckptkit.match.proof.runners import TIME_LIMIT, Module, Refused, Runner, Session
from ckptkit.match.proof.samples import Arrays, Sample, guesses, read_npz, samples, write_npz
from ckptkit.match.proof.signature import Input, signature
from ckptkit.targets.factory import load_weights, make_module, refuse_code

RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_SHOWN = 8  # names that differ
_WEIGHT = 16  # elements: what has fewer is a setting

Outputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """One set of inputs.

    Attributes:
        name: `random 1`, `zeros`, `large`, or the file that the inputs came from.
        inputs: dtype and shape of each input.
        outputs: how each output compares.
        refused: why A could not be run on inputs that the reference takes; "" otherwise.
    """

    name: str
    inputs: Mapping[str, str]
    outputs: tuple[Compared, ...]
    refused: str = ""

    @property
    def equal(self) -> bool:
        return not self.refused and all(output.equal for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of running two models.

    Attributes:
        a, b: what was run: paths, or the name of a factory.
        seed: of the random inputs.
        tolerance: by which floats were compared.
        runs: all inputs that the reference could be run on.
        skipped: inputs that the reference refused, with its reason.
        notes: what else is worth telling.
        saved: the folder that inputs and outputs were written to.
    """

    a: str
    b: str
    seed: int
    tolerance: Tolerance
    runs: tuple[Run, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...] = ()
    saved: str | None = None

    @property
    def equal(self) -> bool:
        """Whether every output of every run is within the tolerance."""
        return all(run.equal for run in self.runs)

    @property
    def verdict(self) -> str:
        return "equal" if self.equal else "different"


def prove(
    a: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    module: str | None = None,
    weights: str | os.PathLike[str] | TensorGraph | None = None,
    section: str | None = None,
    inputs: Sequence[str | os.PathLike[str]] = (),
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    count: int = 3,
    rtol: float | None = None,
    atol: float | None = None,
    save: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    allow_code: bool = False,
    time_limit: float = TIME_LIMIT,
) -> Proof:
    """Run model A and a reference on the same inputs and compare the outputs.

    Inputs are matched by name, by type where the names differ, or by position; outputs by name or position. A free
    dimension gets a size that the reference runs with; inputs that it refuses are skipped, those that only A refuses
    are a difference.

    Args:
        a: an ONNX model.
        against: the reference, an ONNX model; or else
        module: `package.module:factory`, which makes a PyTorch module; needs `allow_code`.
        weights: checkpoint for the module, a path (`section` as in `read`) or a graph; without it, those that the
            factory gave.
        inputs: .npz files to run on instead of made inputs.
        dims: sizes of free dimensions.
        seed, count: of the random inputs.
        rtol, atol: tolerances instead of those of `compare.TOLERANCES`.
        save: folder to write inputs and outputs to, as .npz; `overwrite` replaces it.
        allow_code: the user's own code may be run.
        time_limit: seconds that one run of an ONNX model may take.

    Raises CkptError: a model cannot be read or run, or not in time, or their signatures differ (`signatures-differ`).
    """
    if weights is not None and module is None:
        raise CkptError("usage", "--weights are for a module", None, "--module package.module:factory")
    graph = _model(a)
    if (against is None) == (module is None):
        raise CkptError(
            "usage", "a reference is needed: another model, or a module", None, "--against or --module"
        )
    if module is not None:
        refuse_code(module, allow_code)
    session = Session(os.fspath(a), seed, time_limit)
    wanted = Wanted(inputs, dims or {}, seed, count)
    if against is not None:
        other = _model(against)
        names = pair(graph, other)
        reference = Session(os.fspath(against), seed, time_limit)
        return _proved(session, graph, reference, other, names, wanted, rtol, atol, _target(save), overwrite)
    assert module is not None
    held = weights if weights is None or isinstance(weights, TensorGraph) else read(weights, section)
    made = make_module(module)
    if held is not None:
        load_weights(made, held, module)
    runner = Module(module, made, session.outputs, seed)
    return _proved(session, graph, runner, None, {}, wanted, rtol, atol, _target(save), overwrite)


def _target(save: str | os.PathLike[str] | None) -> str | None:
    return None if save is None else os.fspath(save)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to run on: files, or the sizes, seed and number of inputs to be made."""

    files: Sequence[str | os.PathLike[str]] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    count: int = 3


def _proved(
    session: Session,
    graph: TensorGraph,
    reference: Runner,
    other: TensorGraph | None,
    names: Mapping[str, str],
    wanted: Wanted,
    rtol: float | None = None,
    atol: float | None = None,
    save: str | None = None,
    overwrite: bool = False,
) -> Proof:
    """Run both on the same inputs. `names` are inputs of the reference → of A, its graph is `other` if it has one."""
    graphs = [graph] if other is None else [graph, other]
    theirs = reference.outputs if isinstance(reference, Session) else session.outputs
    outputs = pair_outputs(session.outputs, theirs, reference.label)
    tolerance = _tolerance(graphs, rtol, atol)
    taken, skipped = _reference(reference, _signature(graphs[-1], wanted.files), wanted)
    runs, kept = [], []
    for sample, given in taken:
        expected = leaves({outputs[name]: value for name, value in given.items()})
        run, found = _run(session, sample, names, expected, tolerance)
        runs.append(run)
        kept.append((sample, found, expected))
    if save is not None:
        _save(save, kept, overwrite)
    return Proof(
        a=session.label,
        b=reference.label,
        seed=wanted.seed,
        tolerance=tolerance,
        runs=tuple(runs),
        skipped=skipped,
        notes=tuple(_notes(graphs, names, outputs)),
        saved=save,
    )


def _notes(
    graphs: Sequence[TensorGraph], inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> Iterator[str]:
    operators = {op for graph in graphs for op in graph.origin.details.get("operators", ())}
    if random := sorted(operators & RANDOM):
        yield f"outputs may depend on chance: {', '.join(random)}"
    for what, names in (("inputs", inputs), ("outputs", outputs)):
        other = [f"{mine} is {theirs}" for theirs, mine in names.items() if theirs != mine]
        if other:
            more = f", and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
            yield f"{what} of other names: {', '.join(other[:_SHOWN])}{more}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model is to be proved against before it is put in place: another model, or a module with weights.

    `made` is a module that is there already, with its weights; `module` then is what it is called.
    """

    against: str | None = None
    module: str | None = None
    weights: TensorGraph | None = None
    made: Any = None

    def prove(self, path: str | os.PathLike[str]) -> Proof:
        """Prove a model file. Raises CkptError `prove-failed` unless all outputs are equal, and what `prove` raises."""
        try:
            proof = self._proof(path)
        except CkptError as error:
            if error.where != os.fspath(path):
                raise
            hint = error.hint or "without --prove it is written, and not run"
            raise CkptError(error.code, error.message, Path(path).name, hint) from error
        if not proof.equal:
            run = next(run for run in proof.runs if not run.equal)
            message = f"{_reason(run)}, on the inputs {run.name!r}"
            raise CkptError("prove-failed", message, proof.b, "; ".join(proof.notes) or None)
        return proof

    def _proof(self, path: str | os.PathLike[str]) -> Proof:
        if self.made is not None:
            session = Session(os.fspath(path), 0)
            runner = Module(self.module or "", self.made, session.outputs, 0)
            return _proved(session, _model(path), runner, None, {}, Wanted())
        allowed = self.module is not None
        return prove(path, self.against, module=self.module, weights=self.weights, allow_code=allowed)


def ran(path: str | os.PathLike[str], base: str | os.PathLike[str]) -> bool | None:
    """Run a model that was made of another one, on made inputs: does it give outputs of the shapes that it declares?

    True, or None where that cannot be told: onnxruntime is not installed, or does not run the base like this either.
    Raises CkptError `prove-failed`.
    """
    if find_spec("onnxruntime") is None:
        return None
    try:
        _try(path)
    except CkptError as error:
        try:
            _try(base)
        except CkptError:
            return None
        message = f"it does not run: {error.message}"
        raise CkptError("prove-failed", message, Path(path).name, error.hint) from None
    return True


def _try(path: str | os.PathLike[str]) -> None:
    graph = _model(path)
    session = Session(os.fspath(path), 0)
    taken, _ = _reference(session, _signature(graph, ()), Wanted(count=1))
    declared = {value.name: value.shape for value in graph.outputs}
    for name, array in ((name, array) for _, given in taken for name, array in leaves(given).items()):
        shape, found = declared.get(name), array.shape
        if shape is None:
            continue
        stated = [size if isinstance(size, int) else None for size in shape]
        if len(stated) != len(found) or any(a not in (None, b) for a, b in zip(stated, found, strict=True)):
            what = f"the output {name!r} has the shape {list(found)}, and is declared as {list(shape)}"
            raise CkptError("prove-failed", what, graph.origin.path)


def _reason(run: Run) -> str:
    if run.refused:
        return f"it does not run: {run.refused}"
    output = next(output for output in run.outputs if not output.equal)
    if output.a != output.b:
        return f"the output {output.name!r} is {output.a}, not {output.b}"
    return f"the output {output.name!r} differs in {output.exceeding} elements, by {output.max_abs:g} at most"


def _model(path: str | os.PathLike[str]) -> TensorGraph:
    """Read by our own reader first: what it refuses (data files elsewhere, say) is never loaded."""
    graph = read(os.fspath(path))
    if not graph.nodes:
        raise CkptError("graph-needed", "only a model with a graph can be run", graph.origin.path)
    return graph


def _signature(graph: TensorGraph, files: Sequence[object]) -> tuple[Input, ...]:
    """What the reference takes; with inputs of the user's own only the names matter."""
    if files:
        return tuple(Input(value.name, value.dtype, ()) for value in graph.inputs)
    return signature(graph)


def _tolerance(graphs: Sequence[TensorGraph], rtol: float | None, atol: float | None) -> Tolerance:
    """By the narrowest dtype that either model holds weights, or gives outputs, in."""
    names = {t.dtype.name for graph in graphs for t in graph.values() if t.size >= _WEIGHT}
    names |= {value.dtype for graph in graphs for value in (*graph.outputs, *graph.inputs)}
    found = next((TOLERANCES[name] for name in TOLERANCES if name in names), TOLERANCES["float32"])
    return Tolerance(found.rtol if rtol is None else rtol, found.atol if atol is None else atol)


def _reference(
    reference: Runner, inputs: tuple[Input, ...], wanted: Wanted
) -> tuple[list[tuple[Sample, dict[str, Any]]], dict[str, str]]:
    """The inputs that the reference takes with what it gives, and those that it refuses."""
    skipped: dict[str, str] = {}
    taken = []
    if wanted.files:
        for file in wanted.files:
            sample = _complete(read_npz(os.fspath(file)), inputs)
            try:
                taken.append((sample, reference.run(sample.arrays)))
            except Refused as error:
                raise CkptError("model-refused", str(error), f"{reference.label} on {sample.name}") from None
        return taken, skipped
    reason = ""
    for sizes in guesses(inputs, wanted.dims):
        made = samples(inputs, sizes, wanted.dims, wanted.seed, max(wanted.count, 1))
        first = next(made)
        try:
            taken.append((first, reference.run(first.arrays)))
        except Refused as error:
            reason = reason or str(error)
            continue
        for sample in made:
            try:
                taken.append((sample, reference.run(sample.arrays)))
            except Refused as error:
                skipped[sample.name] = str(error)
        return taken, skipped
    raise CkptError(
        "model-refused",
        f"it runs on none of the inputs that were made: {reason}",
        reference.label,
        "--inputs FILE.npz gives real ones, --dim NAME=SIZE sets free dimensions",
    )


def _complete(sample: Sample, inputs: tuple[Input, ...]) -> Sample:
    """The sample, if it has exactly these inputs; types that numpy lacks come as bytes and get their type again."""
    from ckptkit.core.arrays import numpy_dtype

    missing = [one.name for one in inputs if one.name not in sample.arrays]
    unknown = sorted(sample.arrays.keys() - {one.name for one in inputs})
    if missing or unknown:
        what = f"no input {missing[0]!r}" if missing else f"the model has no input {unknown[0]!r}"
        raise CkptError(
            "prove-inputs", what, sample.name, f"inputs: {', '.join(one.name for one in inputs) or 'none'}"
        )
    arrays = {}
    for one in inputs:
        array = sample.arrays[one.name]
        if array.dtype.kind == "V" and one.dtype in DTYPES and DTYPES[one.dtype].bits == array.itemsize * 8:
            array = array.view(numpy_dtype(DTYPES[one.dtype]))
        arrays[one.name] = array
    return Sample(sample.name, arrays)


def _run(
    session: Session, sample: Sample, names: Mapping[str, str], expected: Outputs, tolerance: Tolerance
) -> tuple[Run, Outputs]:
    shapes = {name: spec(array) for name, array in sample.arrays.items()}
    try:
        given = session.run({names.get(name, name): array for name, array in sample.arrays.items()})
    except Refused as error:
        return Run(sample.name, shapes, (), str(error)), {}
    found = leaves(given)
    compared = [
        compare(name, found.get(name), expected.get(name), tolerance) for name in {**found, **expected}
    ]
    return Run(sample.name, shapes, tuple(compared)), found


def _save(folder: str, runs: Sequence[tuple[Sample, Outputs, Outputs]], overwrite: bool) -> None:
    """`NAME.inputs.npz`, `NAME.a.npz` and `NAME.b.npz` for each run."""
    with Staging(folder, folder=True, overwrite=overwrite) as staging:
        for number, (sample, a, b) in enumerate(runs):
            stem = f"{number}-{Path(sample.name).stem.replace(' ', '-')}"
            parts: tuple[tuple[str, Arrays], ...] = (("inputs", sample.arrays), ("a", a), ("b", b))
            for part, arrays in parts:
                if arrays or part == "inputs":
                    write_npz(str(staging.path / f"{stem}.{part}.npz"), arrays)
        staging.publish([])
