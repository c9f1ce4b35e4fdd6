"""Where the output goes, and the format that writes it."""

import os
from dataclasses import dataclass
from pathlib import Path

from ckptkit.core.errors import CkptError
from ckptkit.format import registry


@dataclass(frozen=True, slots=True)
class Destination:
    """The path to write, whether it is a folder, and the format.

    Only ONNX has a graph, and weights outside its file.
    """

    path: Path
    folder: bool
    format: registry.Format

    @property
    def onnx(self) -> bool:
        return self.format.name == "onnx"


def destination(dst: str | os.PathLike[str], to: str | None) -> Destination:
    """What `dst` and the format named `to` (else the suffix) say.

    A path without a suffix, with a trailing slash, or of an existing folder is a folder. Raises CkptError
    `format-unknown` or `not-writable`.
    """
    text = os.fspath(dst)
    path = Path(text)
    by_suffix = registry.for_suffix(path.name)
    folder = text.endswith(("/", os.sep)) or os.path.isdir(path) or (by_suffix is None and not path.suffix)
    if to is not None:
        chosen = registry.named(to)
    elif folder:
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
    return Destination(path, folder, chosen)
