"""What is taken of a checkpoint, and what stays behind."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Finding
from ckptkit.core.globs import selected
from ckptkit.core.graph import TensorGraph
from ckptkit.core.plan import OutputFile
from ckptkit.core.words import plural
from ckptkit.format import folder, read
from ckptkit.match.quantized import torn_units
from ckptkit.rules.outcome import Rewrite


@dataclass(frozen=True, slots=True)
class Selection:
    """A checkpoint as read, and the tensors of it that were asked for."""

    whole: TensorGraph
    source: TensorGraph

    def losses(self) -> tuple[Finding, ...]:
        """The loss of taking a quantised weight without its scales, or scales without their weight."""
        if self.source is self.whole:
            return ()
        torn = torn_units(self.whole, frozenset(self.source))
        if not torn:
            return ()
        message = f"a quantised weight means nothing without its scales; {torn[0][1]} is not selected"
        return (Finding("scales-left-out", "warning", torn[0][0], message),)

    def left_out(self, rewrite: Rewrite, extras: Sequence[OutputFile], sidecar: bool) -> tuple[str, ...]:
        """What is not carried, in words: sections, tensors, values that are no tensors, files of the folder."""
        whole = self.whole
        out = []
        chosen = whole.origin.section
        if chosen:
            out += [s.name for s in whole.origin.sections if s.name != chosen]
        if len(self.source) < len(whole):
            out.append(f"{plural(len(whole) - len(self.source), 'tensor')} by --include/--exclude")
        if rewrite.dropped:
            out.append(f"{plural(len(rewrite.dropped), 'tensor')} by the rules")
        if whole.objects and not sidecar:
            values = plural(len(whole.objects), "non-tensor value")
            out.append(f"{values} (--sidecar FILE.json keeps what JSON can hold)")
        carried = {file.path for file in extras}
        others = folder.others(whole)
        out += [name for name in others if name not in carried and not name.endswith(".index.json")]
        return tuple(out)


def select(
    src: str | os.PathLike[str],
    section: str | None,
    variant: str | None,
    include: Sequence[str],
    exclude: Sequence[str],
) -> Selection:
    """Read a checkpoint and choose. Raises what `read` raises, and CkptError `nothing-selected`."""
    whole = read(src, section, variant=variant)
    names = selected(whole, include, exclude)
    source = whole.select(names) if len(names) < len(whole) else whole
    outside = next((f for f in whole.findings if f.code == "tensors-outside"), None)
    if not source and (whole or outside):  # a checkpoint without tensors is what it is; this is a mistake
        message = "no tensor is selected" + (f": {outside.message}" if outside and not whole else "")
        hint = outside.hint if outside and not whole else "--exclude leaves out every tensor"
        raise CkptError("nothing-selected", message, whole.origin.path, hint)
    return Selection(whole, source)
