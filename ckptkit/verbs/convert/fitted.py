"""`--fit`: what is written fits a target."""

import os
from collections.abc import Sequence

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.plan import OutputFile
from ckptkit.core.staging import refuse_inputs
from ckptkit.core.words import plural
from ckptkit.match.fit.fitting import Fitting, Mismatched, fitting
from ckptkit.rules.follow import after
from ckptkit.rules.outcome import Rewrite
from ckptkit.targets.made import CONFIG
from ckptkit.targets.resolve import Given, target_of


def fit_to(
    rewrite: Rewrite,
    fit: Given,
    mismatched: Mismatched | None,
    allow_code: bool,
    time_limit: float | None,
) -> tuple[Fitting, Rewrite]:
    """A rewrite carried on until it fits. Raises what `target_of` and `fitting` raise."""
    target = target_of(fit, allow_code=allow_code, time_limit=time_limit)
    fitted = fitting(rewrite.graph, target, mismatched)
    return fitted, after(rewrite, fitted.rules.apply(rewrite.graph))


def refuse_target(fitted: Fitting, outputs: list[str]) -> None:
    """Refuse to write onto what the checkpoint is fitted to. Raises CkptError `target-is-source`."""
    target = fitted.target
    if target.source is not None and target.source.origin.files:
        refuse_inputs(target.source, outputs)
    for output in outputs:
        if os.path.exists(target.path) and os.path.realpath(output) == os.path.realpath(target.path):
            message = "this is what the checkpoint is fitted to"
            raise CkptError("target-is-source", message, output, "write somewhere else")


def configuration(fitted: Fitting | None) -> File | None:
    """The config.json that describes what is written, where the target is made of one."""
    if fitted is None or fitted.target.kind != "config":
        return None
    path = fitted.target.path
    return File.at(os.path.join(path, CONFIG) if os.path.isdir(path) else path)


def little(fitted: Fitting) -> tuple[Finding, ...]:
    """A warning where the checkpoint is hardly one of this model."""
    carried = len(fitted.names("carried")) + len(fitted.names("extended"))
    if 2 * carried >= len(fitted.items):
        return ()
    message = f"{carried} of the target's {plural(len(fitted.items), 'tensor')} come from this checkpoint"
    return (Finding("fit-little", "warning", "", message, "ckptkit check says how they differ"),)


def stale(fitted: Fitting, extras: Sequence[OutputFile]) -> tuple[Finding, ...]:
    """A warning where a folder gets the config.json of the source, which describes other shapes."""
    changed = any(item.what not in ("carried", "tied") for item in fitted.items)
    if fitted.target.kind == "config" or not changed or all(file.path != CONFIG for file in extras):
        return ()
    message = "config.json is that of the source, and other tensors are written than it describes"
    return (
        Finding("config-stale", "warning", CONFIG, message, "--fit with the new config.json replaces it"),
    )
