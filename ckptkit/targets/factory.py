"""PyTorch modules of the user, named on the command line as `package.module:factory`. Runs their code.

Only an option or argument may bring such a name here; nothing that a file holds ever does.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor

_SPEC = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def is_spec(text: str) -> bool:
    """Whether a text reads `package.module:factory`."""
    return _SPEC.fullmatch(text) is not None


def refuse_code(spec: str, allowed: bool) -> None:
    """Raises CkptError `code-refused` unless the user allowed their code to run."""
    if not allowed:
        message = "making a module runs its code"
        raise CkptError("code-refused", message, spec, "--allow-code lets it, if you trust it")


@contextmanager
def users_code() -> Iterator[None]:
    """While code of the user runs: what it prints goes to stderr, as stdout holds our answer.

    Where it ends the process, which would look like success, RuntimeError is raised instead.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise RuntimeError(f"the code ended its process ({error.code})") from error


def make_module(spec: str, device: str = "") -> Any:
    """Call the factory `package.module:factory` of the user. Runs their code.

    The current folder is searched first, as `python -m` does. With `device` (`meta`) the factory makes its tensors
    there; what it imports is imported before. Raises CkptError `package-missing`, `module-invalid`.
    """
    try:
        import torch
    except ImportError:
        raise CkptError("package-missing", "a module needs torch", spec, "pip install torch") from None
    if not is_spec(spec):
        raise CkptError("module-invalid", "this is not package.module:factory", spec)
    path, _, factory = spec.partition(":")
    sys.path.insert(0, "")
    try:
        with users_code():
            made = import_module(path)
            for part in factory.split("."):
                made = getattr(made, part)
            if isinstance(made, torch.nn.Module):
                module = made
            elif device:
                with torch.device(device):
                    module = made()  # type: ignore[operator]
            else:
                module = made()  # type: ignore[operator]
    except Exception as error:  # whatever the user's code raises
        on = f" on the {device} device" if device else ""
        message = f"no module was made{on}: {type(error).__name__}: {one_line(error)}"
        raise CkptError("module-invalid", message, spec) from error
    finally:
        sys.path.remove("")
    if not isinstance(module, torch.nn.Module):
        raise CkptError("module-invalid", f"this makes no torch.nn.Module: {type(module).__name__}", spec)
    return module


def load_weights(module: Any, weights: Mapping[str, Tensor], spec: str) -> None:
    """Put a checkpoint into a module, every name of it. Raises CkptError `module-misfit`."""
    try:
        with users_code():
            module.load_state_dict(torch_tensors(weights))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CkptError("module-misfit", f"the weights do not fit: {' '.join(lines)[:500]}", spec) from None


def torch_tensors(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors as torch's own, copied. Raises CkptError `dtype-unsupported`."""
    import torch

    state = {}
    for name, tensor in weights.items():
        dtype = getattr(torch, tensor.dtype.name, None)
        if not isinstance(dtype, torch.dtype):
            raise CkptError("dtype-unsupported", f"torch has no {tensor.dtype.name}", name)
        data = bytearray(tensor.tobytes())
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        state[name] = flat.reshape(tensor.shape)
    return state


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of bounded length."""
    text = " ".join(_COLOURS.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}…"
