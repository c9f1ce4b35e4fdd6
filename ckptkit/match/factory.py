"""PyTorch modules of the user, named on the command line as `package.module:factory`. Runs their code.

Only an option or argument may bring such a name here; nothing that a file holds ever does.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor


def make_module(spec: str) -> Any:
    """Call the factory `package.module:factory` of the user. Runs their code.

    The current folder is searched first, as `python -m` does. Raises CkptError `package-missing`, `module-invalid`.
    """
    try:
        import torch
    except ImportError:
        raise CkptError("package-missing", "a module needs torch", spec, "pip install torch") from None
    path, colon, factory = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in (*path.split("."), *factory.split("."))):
        raise CkptError("module-invalid", "this is not package.module:factory", spec)
    sys.path.insert(0, "")
    try:
        made = import_module(path)
        for part in factory.split("."):
            made = getattr(made, part)
        module = made if isinstance(made, torch.nn.Module) else made()  # type: ignore[operator]
    except Exception as error:  # whatever the user's code raises
        raise CkptError("module-invalid", f"no module was made: {one_line(error)}", spec) from error
    finally:
        sys.path.remove("")
    if not isinstance(module, torch.nn.Module):
        raise CkptError("module-invalid", f"this makes a {type(module).__name__}, no torch.nn.Module", spec)
    return module


def load_weights(module: Any, weights: Mapping[str, Tensor], spec: str) -> None:
    """Put a checkpoint into a module, every name of it. Raises CkptError `module-misfit`."""
    import torch

    state = {}
    for name, tensor in weights.items():
        dtype = getattr(torch, tensor.dtype.name, None)
        if not isinstance(dtype, torch.dtype):
            raise CkptError("dtype-unsupported", f"torch has no {tensor.dtype.name}", name)
        data = bytearray(tensor.tobytes())
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        state[name] = flat.reshape(tensor.shape)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CkptError("module-misfit", f"the weights do not fit: {' '.join(lines)[:500]}", spec) from None


def one_line(error: Exception) -> str:
    """What an exception says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}…"
