"""Do two models give the same outputs? Both are run on the same inputs and their outputs compared.

Model A is an ONNX file. The reference B is another one, run by onnxruntime too, or a PyTorch module with weights. This
is evidence, not proof in the mathematical sense: it holds for the inputs that were run.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph, Value
from ckptkit.core.staging import Staging
from ckptkit.format import read
from ckptkit.match.proof.compare import TOLERANCES, Compared, Tolerance, compare
from ckptkit.match.proof.runners import Module, Refused, Runner, Session
from ckptkit.match.proof.samples import Arrays, Sample, guesses, read_npz, samples, write_npz
from ckptkit.match.proof.signature import Input, signature
from ckptkit.targets.factory import refuse_code

RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)

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
) -> Proof:
    """Run model A and a reference on the same inputs and compare the outputs.

    Inputs and outputs are matched by name, or by position where the names differ. A free dimension gets a size that
    the reference runs with; inputs that it refuses are skipped, those that only A refuses are a difference.

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

    Raises CkptError: a model cannot be read or run, or their signatures differ (`signatures-differ`).
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
    graphs = [graph]
    reference: Runner
    names: Sequence[str]
    session = Session(os.fspath(a), seed)
    if against is not None:
        graphs.append(_model(against))
        reference = Session(os.fspath(against), seed)
        names = reference.outputs
        _check(graphs[0], graphs[1])
    else:
        assert module is not None
        held = weights if weights is None or isinstance(weights, TensorGraph) else read(weights, section)
        reference = _module(module, held, session.outputs, seed)
        names = session.outputs
    if len(names) != len(session.outputs):
        raise CkptError(
            "signatures-differ", f"{len(session.outputs)} outputs, and {len(names)}", reference.label
        )
    given = _signature(graphs[-1], inputs)
    tolerance = _tolerance(graphs, rtol, atol)
    taken, skipped = _reference(reference, given, inputs, dims or {}, seed, count)
    by_name = set(names) == set(session.outputs)
    order = session.outputs if by_name else names
    pairs = dict(zip(session.outputs, order, strict=True))
    renames = _renames(graphs, session.inputs)
    runs, outputs = [], []
    for sample, expected in taken:
        run, found = _run(session, sample, renames, expected, pairs, tolerance)
        runs.append(run)
        outputs.append(found)
    if save is not None:
        _save(
            os.fspath(save), [(s, found, b) for (s, b), found in zip(taken, outputs, strict=True)], overwrite
        )
    random = sorted({node.op for g in graphs for node in g.nodes if node.op in RANDOM})
    return Proof(
        a=os.fspath(a),
        b=reference.label,
        seed=seed,
        tolerance=tolerance,
        runs=tuple(runs),
        skipped=skipped,
        notes=(f"outputs may depend on chance: {', '.join(random)}",) if random else (),
        saved=None if save is None else os.fspath(save),
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model is to be proved against before it is put in place: another model, or a module with weights."""

    against: str | None = None
    module: str | None = None
    weights: TensorGraph | None = None
    dims: Mapping[str, int] | None = None

    def prove(self, path: str | os.PathLike[str]) -> Proof:
        """Prove a model file. Raises CkptError `prove-failed` unless all outputs are equal, and what `prove` raises."""
        allowed = self.module is not None
        proof = prove(
            path, self.against, module=self.module, weights=self.weights, dims=self.dims, allow_code=allowed
        )
        if not proof.equal:
            run = next(run for run in proof.runs if not run.equal)
            raise CkptError("prove-failed", f"{_reason(run)}, on the inputs {run.name!r}", proof.b)
        return proof


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


def _module(spec: str, weights: TensorGraph | None, outputs: Sequence[str], seed: int) -> Module:
    from ckptkit.targets.factory import load_weights, make_module

    made = make_module(spec)
    if weights is not None:
        load_weights(made, weights, spec)
    return Module(spec, made, outputs, seed)


def _check(a: TensorGraph, b: TensorGraph) -> None:
    """Refuse models whose inputs do not correspond."""
    mine, theirs = ({value.name: value for value in g.inputs} for g in (a, b))
    names = mine if mine.keys() == theirs.keys() else theirs
    pairs = (
        [(mine[n], theirs[n]) for n in mine] if names is mine else list(zip(a.inputs, b.inputs, strict=False))
    )
    if len(mine) == len(theirs) and all(x.dtype == y.dtype and _fit(x, y) for x, y in pairs):
        return
    texts = (", ".join(map(_described, g.inputs)) or "none" for g in (a, b))
    raise CkptError("signatures-differ", f"inputs {' and '.join(texts)}", f"{a.origin.path}, {b.origin.path}")


def _fit(x: Value, y: Value) -> bool:
    """Whether some array suits both."""
    if x.shape is None or y.shape is None:
        return True
    free = (
        m == n or not isinstance(m, int) or not isinstance(n, int)
        for m, n in zip(x.shape, y.shape, strict=False)
    )
    return len(x.shape) == len(y.shape) and all(free)


def _described(value: Value) -> str:
    shape = "?" if value.shape is None else ",".join("?" if n is None else str(n) for n in value.shape)
    return f"{value.name}:{value.dtype}[{shape}]"


def _signature(graph: TensorGraph, files: Sequence[object]) -> tuple[Input, ...]:
    """What the reference takes; with inputs of the user's own only the names matter."""
    if files:
        return tuple(Input(value.name, value.dtype, ()) for value in graph.inputs)
    return signature(graph)


def _renames(graphs: Sequence[TensorGraph], inputs: Sequence[str]) -> dict[str, str]:
    """Name of an input in the samples → in A."""
    theirs = [value.name for value in graphs[-1].inputs]
    mine = [value.name for value in graphs[0].inputs]
    return {} if set(theirs) <= set(inputs) else dict(zip(theirs, mine, strict=True))


def _tolerance(graphs: Sequence[TensorGraph], rtol: float | None, atol: float | None) -> Tolerance:
    """By the narrowest dtype that either model holds weights, or gives outputs, in."""
    names = {t.dtype.name for graph in graphs for t in graph.values() if len(t.shape) > 1}
    names |= {value.dtype for graph in graphs for value in (*graph.outputs, *graph.inputs)}
    found = next((TOLERANCES[name] for name in TOLERANCES if name in names), TOLERANCES["float32"])
    return Tolerance(found.rtol if rtol is None else rtol, found.atol if atol is None else atol)


def _reference(
    reference: Runner,
    inputs: tuple[Input, ...],
    files: Sequence[str | os.PathLike[str]],
    dims: Mapping[str, int],
    seed: int,
    count: int,
) -> tuple[list[tuple[Sample, Outputs]], dict[str, str]]:
    """The inputs that the reference takes with what it gives, and those that it refuses."""
    skipped: dict[str, str] = {}
    taken = []
    if files:
        for file in files:
            sample = read_npz(os.fspath(file))
            _complete(sample, inputs)
            try:
                taken.append((sample, reference.run(sample.arrays)))
            except Refused as error:
                raise CkptError("model-refused", str(error), f"{reference.label} on {sample.name}") from None
        return taken, skipped
    reason = ""
    for sizes in guesses(inputs, dims):
        made = samples(inputs, sizes, dims, seed, max(count, 1))
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


def _complete(sample: Sample, inputs: tuple[Input, ...]) -> None:
    missing = [one.name for one in inputs if one.name not in sample.arrays]
    unknown = sorted(sample.arrays.keys() - {one.name for one in inputs})
    if missing or unknown:
        what = f"no input {missing[0]!r}" if missing else f"the model has no input {unknown[0]!r}"
        raise CkptError(
            "prove-inputs", what, sample.name, f"inputs: {', '.join(one.name for one in inputs) or 'none'}"
        )


def _run(
    session: Session,
    sample: Sample,
    renames: Mapping[str, str],
    expected: Outputs,
    pairs: Mapping[str, str],
    tolerance: Tolerance,
) -> tuple[Run, Outputs]:
    shapes = {
        name: f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
        for name, array in sample.arrays.items()
    }
    try:
        found = session.run({renames.get(name, name): array for name, array in sample.arrays.items()})
    except Refused as error:
        return Run(sample.name, shapes, (), str(error)), {}
    compared = tuple(compare(name, found[name], expected[pairs[name]], tolerance) for name in found)
    return Run(sample.name, shapes, compared), found


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
