"""Carrying out a plan: stream, check, put in place."""

import os
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, hashed, told
from ckptkit.core.jsonable import dumps
from ckptkit.core.plan import OutputFile, Piece
from ckptkit.core.staging import Staging, check_target, refuse_inputs
from ckptkit.core.stream import write_file
from ckptkit.core.tensor import Tally, Tensor
from ckptkit.core.version import VERSION
from ckptkit.core.words import plural
from ckptkit.format import folder, read
from ckptkit.match.digest import combine, tensor_digest, tensor_hasher
from ckptkit.match.receipt import FileRecord, Receipt, TensorRecord
from ckptkit.match.written import check_header, compare_bytes, open_with_reference
from ckptkit.ops.equal import passed
from ckptkit.verbs.convert.plan import Plan

if TYPE_CHECKING:
    from ckptkit.match.proof.proving import Proof

Progress = Callable[[str, int, int], None]


def write(
    plan: Plan,
    *,
    overwrite: bool = False,
    verify: bool = False,
    receipt: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Carry out a plan. The target appears whole or not at all.

    Args:
        plan: what `plan` decided.
        overwrite: replace an existing target, sidecar and receipt.
        verify: read every byte back, compare it with its source, and open the result with the format's
            reference library where that is installed.
        receipt: JSON file to record what came from where in, with a digest of every tensor.
        progress: called with the phase (`write`, `verify`), bytes done and bytes in all.

    Raises:
        CkptError: a loss was not allowed, the target exists, the disk is full, the source changed, or what
            was written does not read back.
    """
    check(plan, overwrite=overwrite, receipt=receipt)
    stale = _stale_data(plan)
    tally = Tally()
    _refuse_tally(tally, plan, ", ".join(passed(plan.checks, tally)[:_NAMED]))
    hashers: dict[str, Any] = {}
    with ExitStack() as stack:
        staging = stack.enter_context(Staging(plan.target, folder=plan.folder, overwrite=overwrite))
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress("write", done, plan.nbytes)

        for file in plan.files:
            path = staging.path / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            streamed = write_file(
                file,
                path,
                progress=advance,
                observe=(lambda piece: _observer(piece, hashers)) if receipt is not None else None,
                sync=staging.replaces,
            )
            for code, count in streamed.tally.counts.items():
                tally.add(code, count)
        _refuse_tally(tally, plan)
        entry = staging.path if plan.folder else staging.path / plan.files[-1].path
        if plan.layout.links:
            entry = staging.surface(entry.name)
        written = check_header(entry, plan.graph)
        if verify:
            _check_stated(plan)
            compare_bytes(written, plan.graph, progress)
        reference = verify and open_with_reference(
            plan.format, [entry] if plan.layout.links else [staging.path / f.path for f in plan.layout.files]
        )
        proof = None if plan.reference is None else plan.reference.prove(entry)
        ran = _ran(plan, entry) if proof is None else True
        result = _receipt(plan, hashers, tally, verify, reference or None, proof, ran)
        texts = {}
        if plan.sidecar is not None:
            texts[plan.sidecar] = _sidecar(plan)
        if plan.name_map is not None and plan.into is not None:
            texts[plan.name_map] = plan.into.text()
        if receipt is not None:
            texts[os.fspath(receipt)] = result.text()
        staged = []
        for place, text in texts.items():
            side = stack.enter_context(Staging(place, folder=False, overwrite=overwrite))
            data = text.encode("utf-8", "backslashreplace")
            name = side.target.name
            write_file(OutputFile(name, len(data), (Piece(0, len(data), data),)), side.path / name)
            staged.append((side, name))
        staging.publish([f.path for f in plan.files])
        for side, name in staged:
            side.publish([name])
    for path in stale:
        with suppress(OSError):  # nothing refers to it any more
            path.unlink(missing_ok=True)
    return result


def _ran(plan: Plan, model: Path) -> bool | None:
    """Run a model whose last layer was exchanged, which nothing else tries."""
    if plan.into is None or not plan.into.head_changed:
        return None
    from ckptkit.match.proof.proving import ran

    return ran(model, plan.into.base.origin.path)


def check(plan: Plan, *, overwrite: bool = False, receipt: str | os.PathLike[str] | None = None) -> None:
    """Raise what `write` would raise before its first byte; touches nothing."""
    refusal = plan.refusal()
    if refusal is not None:
        raise refusal
    beside = [path for path in (plan.sidecar, plan.name_map, receipt) if path is not None]
    for graph in plan.inputs:
        refuse_inputs(graph, [plan.target, *beside])
    with told(plan.target):
        target = Path(os.path.abspath(plan.target))
    check_target(target, folder=plan.folder, overwrite=overwrite)
    for path in beside:
        check_target(Path(os.path.abspath(path)), folder=False, overwrite=overwrite)
    if plan.folder and os.path.isdir(target):
        _refuse_strangers(target, {file.path for file in plan.files})


def _refuse_strangers(target: Path, names: Set[str]) -> None:
    """A folder is replaced as a whole, so everything in it must belong to a checkpoint, and nobody be in it."""
    with told(target):
        here = Path.cwd()
    if here == target or target in here.parents:
        raise CkptError(
            "exists", "the target is the folder this command runs in", target, "write to another one"
        )
    strangers = folder.strangers(str(target), names)
    if strangers:
        what = f"the folder holds {strangers[0]}, which belongs to no checkpoint"
        raise CkptError("exists", what, target, "write to another folder, or clear this one yourself")


def _stale_data(plan: Plan) -> list[Path]:
    """Data files that an ONNX model to be replaced uses and that carry its name: nothing would refer to them."""
    target = Path(plan.target)
    if plan.format != "onnx" or plan.folder or not os.path.isfile(target):
        return []
    try:
        used = read(target).origin.files
    except CkptError:
        return []
    needed = {file.path for graph in plan.inputs for file in graph.origin.files} | set(
        plan.layout.links.values()
    )
    kept = {os.path.realpath(path) for path in needed}
    folder_of = target.resolve().parent
    named = [Path(file.path) for file in used if os.path.basename(file.path).startswith(f"{target.name}.")]
    return [path for path in named if path.resolve().parent == folder_of and str(path.resolve()) not in kept]


def _check_stated(plan: Plan) -> None:
    """Compare the SHA-1 that an ONNX model states of its data files with theirs; no library does."""
    checksums = (graph.origin.details.get("checksums", {}) for graph in plan.inputs)
    for path, stated in (pair for some in checksums for pair in some.items()):
        if hashed(File.at(path), "sha1") != stated.lower():
            raise CkptError("checksum-mismatch", "the data file is not the one that the model states", path)


_NAMED = 5  # tensors that a message names


def _refuse_tally(tally: Tally, plan: Plan, where: str = "") -> None:
    """Losses that only the values show stop publication unless they were allowed."""
    for code, count in tally.counts.items():
        if code not in plan.allowed:
            raise CkptError(
                code,
                f"{plural(count, 'value')} would be lost",
                where or plan.source.origin.path,
                f"--allow-loss {code} accepts it",
            )


def _observer(piece: Piece, hashers: dict[str, Any]) -> Any:
    if not piece.name or not isinstance(piece.content, Tensor):
        return None
    hashers[piece.name] = tensor_hasher(piece.content)
    return hashers[piece.name]


def _receipt(
    plan: Plan,
    hashers: Mapping[str, Any],
    tally: Tally,
    verified: bool,
    reference: bool | None,
    proof: "Proof | None",
    ran: bool | None,
) -> Receipt:
    ties = plan.graph.ties()
    digests = {name: hasher.hexdigest() for name, hasher in hashers.items()}
    for name, tensor in plan.graph.items():
        if (
            digests and name not in digests
        ):  # a tied name shares its bytes; what the writer left inline is read again
            digests[name] = digests.get(ties.get(name, "")) or tensor_digest(tensor)
    tensors = tuple(
        TensorRecord(
            name,
            plan.names[name],
            tensor.dtype.name,
            plan.cast.get(name, tensor.dtype.name),
            tensor.shape,
            digests.get(name),
            *plan.trace[name],
        )
        for name, tensor in plan.graph.items()
    )
    losses = {loss.code: 1 for loss in plan.losses} | tally.counts
    root = Path(plan.target) if plan.folder else Path(plan.target).parent
    return Receipt(
        source=plan.source.origin.path,
        source_format=plan.source.origin.format,
        target=plan.target,
        target_format=plan.format,
        inputs=tuple(FileRecord(f.path, f.size) for graph in plan.inputs for f in graph.origin.files),
        outputs=tuple(FileRecord(str(root / f.path), f.size) for f in plan.files),
        section=plan.source.origin.section,
        tensors=tensors,
        ties=ties,
        left_out=plan.left_out,
        losses=losses,
        digest=combine(digests) if digests else None,
        verified=verified,
        reference=reference,
        proved=None if proof is None else proof.b,
        fit=None if plan.fit is None else plan.fit.to_json(),
        ran=ran if plan.into is not None and plan.into.head_changed else None,
        version=VERSION,
    )


def _sidecar(plan: Plan) -> str:
    """The non-tensor objects: those that JSON can hold by path, the others by their type."""
    held: dict[str, Any] = {}
    named: dict[str, str] = {}
    for leaf in plan.source.objects:
        if leaf.opaque or (leaf.value is None and leaf.type != "NoneType"):
            named[leaf.path] = leaf.type
        else:
            held[leaf.path] = leaf.value
    document = {"schema": "ckptkit.sidecar/1", "objects": held, "not_held": named}
    return dumps(document, indent=1) + "\n"
