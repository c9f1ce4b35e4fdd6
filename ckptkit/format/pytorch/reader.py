"""From a PyTorch file of any container to a tensor graph.

    PK 03 04     zip: torch.save since 1.6, TorchScript (constants.pkl), torch.export (archive_format; before
                 torch 2.8 an archive of torch archives, serialized_state_dict.pt and the like)
    ustar        tar of torch before 0.1.10
    magic number stream of torch before 1.6
    otherwise    one bare pickle, of numpy arrays or of whatever else holds tensors

The suffix of a file says nothing. Pickles and descriptions are parsed; of storages not a byte is read.
"""

from dataclasses import replace

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.tensor import Tensor
from ckptkit.core.words import plural
from ckptkit.format.pytorch.archive import OLD_EXPORT, Archive, open_archive
from ckptkit.format.pytorch.assemble import Assembly, assemble, assemble_attributes
from ckptkit.format.pytorch.content import Content, classes_not_run
from ckptkit.format.pytorch.legacy import is_legacy, read_legacy
from ckptkit.format.pytorch.refs import shortened
from ckptkit.format.pytorch.source import Held, Pickles, Source, Span
from ckptkit.format.pytorch.zipped import ZipStorages, describe, load_member, promised_size, read_zipped

_HEAD = 512
_LIGHTNING = "pytorch-lightning_version"


def read(path: str, options: ReadOptions) -> TensorGraph:
    """The tensor graph of one file. Raises CkptError, whose `where` begins with the file."""
    file = File.at(path)
    try:
        with file.open() as reader:
            return _read(Span.whole(reader), options)
    except CkptError as error:
        inner = None if error.where is None else str(error.where)
        if inner is not None and inner.startswith(path):
            raise
        where = f"{path}: {shortened(inner)}" if inner else path
        raise CkptError(error.code, error.message, where, error.hint) from None


def _read(span: Span, options: ReadOptions) -> TensorGraph:
    head = span.read(0, min(_HEAD, span.size))
    if head.startswith(b"PK\3\4"):
        archive = _opened(span, options.budgets)
        if "archive_format" in archive or OLD_EXPORT in archive:
            return _exported(archive, options)
        if "constants.pkl" in archive:
            return _scripted(archive, options)
        if "data.pkl" not in archive:
            raise CkptError(
                "format-unsupported",
                "TorchScript of torch 1.3 or older keeps its tensors in another way",
                span.where,
                "load and save it again with torch 1.4 to 2.4",
            )
        return _graph(span, read_zipped(archive), options)
    if head[257:262] == b"ustar":
        from ckptkit.format.pytorch.tar import read_tar

        return _graph(span, read_tar(span, options.budgets), options)
    if is_legacy(head):
        return _graph(span, read_legacy(span, options.budgets), options)
    return _graph(span, _bare(span, options.budgets), options)


def _opened(span: Span, budgets: Budgets) -> Archive:
    try:
        return open_archive(span, budgets)
    except CkptError as error:
        least = promised_size(span, budgets) if error.code == "truncated" else None
        if least is None or least <= span.size:
            raise
        message = f"the file is incomplete: it has {span.size} of at least {least} bytes"
        raise CkptError(error.code, message, error.where, error.hint) from None


def _bare(source: Source, budgets: Budgets) -> Content:
    """A pickle that is nothing but a pickle."""
    loaded = Pickles(source, budgets).load(0)
    findings: tuple[Finding, ...] = ()
    if loaded.end < source.size:
        text = f"{source.size - loaded.end} bytes follow the end of the pickle"
        findings = (Finding("bytes-unclaimed", "warning", "", text),)
    return Content(
        loaded.value, "bare pickle, not of torch.save", loaded.globals_seen, loaded.end, {}, findings
    )


def _scripted(archive: Archive, options: ReadOptions) -> TensorGraph:
    from ckptkit.format.pytorch import torchscript

    storages, constants = ZipStorages(archive, "data/"), ZipStorages(archive, "constants/")
    pickles = [("data.pkl", load_member(archive, "data.pkl", storages))]
    pickles.append(("constants.pkl", load_member(archive, "constants.pkl", constants)))
    content = describe(archive, pickles, [storages, constants], f"TorchScript, {archive.era}")
    found: list[tuple[str, object, str]] = list(torchscript.attributes(archive, content.value))
    if type(pickles[1][1].value) is tuple:
        found += ((f"{torchscript.CONSTANTS}.{i}", value, "") for i, value in enumerate(pickles[1][1].value))
    assembly = assemble_attributes(found, options, label=archive.file)
    return _assembled(archive.span, content, assembly)


def _exported(archive: Archive, options: ReadOptions) -> TensorGraph:
    """Weights are the state dict; constants (buffers that are not persistent, lifted tensors) stand apart."""
    from ckptkit.format.pytorch import pt2

    old = "archive_format" not in archive
    parts: dict[str, dict[str, Tensor]] = {}
    left: list[str] = []
    if old:
        for what, member in pt2.OLD_MEMBERS.items():
            if member in archive:
                inner = replace(options, section="all")
                parts[what] = dict(_read(archive.nested(member).span, inner).tensors)
    else:
        names = pt2.models(archive)
        for model in names:
            for what in (pt2.WEIGHTS, pt2.CONSTANTS):
                tensors, others = pt2.payloads(archive, model, what, _lone_tensor)
                parts[what if len(names) == 1 else f"{model}.{what}"] = tensors
                left += others
    era = "torch 2.1 to 2.7" if old else "torch 2.8 or newer"
    findings = list(archive.findings)
    if left:
        text = f"{plural(len(left), 'constant')} of the program: objects, not tensors, such as {left[0]!r}"
        findings.append(Finding("objects-left-out", "note", "", text))
    folders = (f"data/{pt2.WEIGHTS}/", f"data/{pt2.CONSTANTS}/")
    stored = sum(archive.entries[name].size for folder in folders for name in archive.below(folder))
    content = Content(None, f"torch.export archive, {era}", (), stored, {}, tuple(findings))
    return _assembled(archive.span, content, pt2.select(parts, options))


def _lone_tensor(archive: Archive) -> Tensor | None:
    content = read_zipped(archive)
    assembly = assemble(content.value, ReadOptions(section="all"), label=archive.span)
    return next(iter(assembly.tensors.values())) if len(assembly.tensors) == 1 else None


def _graph(span: Span, content: Content, options: ReadOptions) -> TensorGraph:
    count = 0

    def nested(data: bytes) -> object:
        nonlocal count
        count += 1
        held = Held(data, span.where, (span.file, count))
        return read_legacy(held, options.budgets).value

    return _assembled(span, content, assemble(content.value, options, label=span.file, nested=nested))


def _assembled(span: Span, content: Content, assembly: Assembly) -> TensorGraph:
    details = dict(content.details)
    not_run = classes_not_run(content.globals_seen)
    if not_run:
        details["classes_not_run"] = not_run
    if content.stored:
        details["stored_storages_nbytes"] = content.stored
    version = next((leaf.value for leaf in assembly.objects if leaf.path == _LIGHTNING), None)
    if version is not None:
        details["lightning"] = version
    origin = Origin(
        path=span.file.path,
        format="pytorch",
        container=content.container,
        files=(span.file,),
        section=assembly.section,
        sections=assembly.sections,
        details=details,
    )
    return TensorGraph(
        assembly.tensors,
        origin,
        metadata=assembly.metadata,
        objects=assembly.objects,
        findings=(*content.findings, *assembly.findings),
    )
