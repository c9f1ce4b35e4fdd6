"""What a contract demands of the whole: metadata, ties, forbidden names, policies, digest, files."""

import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import translate

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Severity
from ckptkit.core.graph import TensorGraph
from ckptkit.core.words import plural
from ckptkit.match import stored
from ckptkit.match.fit.compare import ties
from ckptkit.targets.target import MADE, Target, weights
from ckptkit.verbs.check.report import CheckReport, Misfit
from ckptkit.verbs.check.values import Progress, values


def demands(graph: TensorGraph, target: Target) -> Iterator[Misfit]:
    """Each demand that is not met."""
    for group in ties(graph, target):
        names = ", ".join(group)
        cause = "saved as independent copies, or trained apart"
        # A module ties its weights itself; what it takes for them is right if the copies are equal.
        severity: Severity = "warning" if target.kind in MADE else "error"
        yield Misfit("tie-broken", severity, group[0], f"one tensor: {names}", "separate tensors", cause)
    for key, value in target.metadata.items():
        found = graph.metadata.get(key)
        if found is None:
            hint = f"convert --metadata {key}={'VALUE' if value is None else value}"
            yield Misfit("metadata-missing", "error", key, value or "any value", "nothing", hint=hint)
        elif value not in (None, found):
            yield Misfit("metadata-other", "error", key, value or "", found)
    for pattern in target.forbidden:
        match = re.compile(translate(pattern)).match
        for name in filter(match, graph):
            yield Misfit("name-forbidden", "error", name, f"nothing that matches {pattern}", "a tensor")
    yield from _policies(graph, target)
    yield from _loading(graph, target)
    if target.digest:
        from ckptkit.match.digest import combine, digests

        digest = combine(digests(graph.tensors))
        if digest != target.digest:
            yield Misfit(
                "digest-differs", "error", "", target.digest, digest, "values, names or dtypes changed"
            )


def _loading(graph: TensorGraph, target: Target) -> Iterator[Misfit]:
    """What is no demand, and worth knowing before a library loads the checkpoint."""
    for note in target.notes:
        yield Misfit("config-unsupported", "warning", "", cause=note)
    if target.loader is not None and (new := target.loader.names(graph.tensors, target.tensors)):
        old = next(iter(new))
        yield Misfit(
            "names-differ", "note", old, new[old], old,
            f"{target.loader.name} renames {plural(len(new), 'tensor')} like this when it loads them",
        )  # fmt: skip
    floats = Counter(tensor.dtype.name for tensor in graph.values() if tensor.dtype.kind == "float")
    if target.dtype and floats and target.dtype not in floats:
        found = floats.most_common(1)[0][0]
        cause = "the configuration states another precision than that of the weights, which are cast to it"
        yield Misfit(
            "dtype-stated", "warning", "", target.dtype, found, cause, f"convert --dtype {target.dtype}"
        )


def _policies(graph: TensorGraph, target: Target) -> Iterator[Misfit]:
    policies = target.policies
    if policies.dtypes:
        allowed = "|".join(policies.dtypes)
        for name, tensor in weights(graph).items():
            if tensor.dtype.name not in policies.dtypes:
                yield Misfit("dtype-refused", "error", name, allowed, tensor.dtype.name)
    nbytes = graph.origin.stored
    if policies.max_bytes is not None and nbytes > policies.max_bytes:
        expected = f"at most {policies.max_bytes:,} bytes"
        yield Misfit("too-large", "error", "", expected, f"{nbytes:,} bytes")
    if policies.globals is not None:
        for name in graph.origin.details.get("classes_not_run", ()):
            if name not in policies.globals:
                said = "a class or function that a pickle names"
                hint = "ckptkit scan tells what it would do"
                yield Misfit(
                    "global-refused", "error", name, "plain data, or what is listed", said, hint=hint
                )
    if policies.finite:
        yield from (item for item in values(weights(graph)) if item.code == "not-finite")


def files(path: str, target: Target, progress: Progress | None = None) -> list[Misfit]:
    """The files that are not those which the target states. Raises CkptError `outside-folder`, `io-error`."""
    found = []
    try:
        compared = list(stored.compare(path, target.files, progress))
    except CkptError as error:
        where = target.path if error.code == "outside-folder" else error.where
        raise CkptError(error.code, error.message, where, error.hint) from None
    for item in compared:
        if item.found is None:
            found.append(Misfit("file-missing", "error", item.name, "a file", "nothing"))
        elif item.found != item.expected:
            what, said = ("a git-LFS pointer to ", "") if item.pointer else ("", "")
            expected = f"{item.expected.size:,} bytes, sha256 {item.expected.sha256[:16]}…"
            said = f"{what}{item.found.size:,} bytes"
            said += f", sha256 {item.found.sha256[:16]}…" if item.found.sha256 else ""
            found.append(
                Misfit("file-differs", "error", item.name, expected, said, "another version of the file")
            )
    return found


def from_pointer(path: str, target: Target) -> CheckReport:
    """The answer where git-LFS pointers stand for the files: they name what the contract states, or they do not."""
    findings = tuple(files(path, target))
    if findings:
        return CheckReport(
            path, target.path, "does not fit", "other files than the contract states", findings
        )
    summary = "fits, by its git-LFS pointer; the file itself was not read"
    return CheckReport(path, target.path, "fits", summary, (), expected=len(target.tensors))
