"""Running a model on arrays: an ONNX file by onnxruntime, a PyTorch module by torch. Nothing else loads either.

onnxruntime gets a file only after our own reader has found every path in it sound, and is told of no library of custom
operators. A run is ended after a time limit, and gets no more memory than the machine has: a file decides how long a
loop is and how large an output.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from ckptkit.core.dtypes import BY_ONNX, BY_TORCH
from ckptkit.core.errors import CkptError
from ckptkit.match.proof.samples import Arrays
from ckptkit.targets.factory import one_line, users_code

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

TIME_LIMIT = 300.0  # seconds of one run
_UNKNOWN_MEMORY = 8 << 30  # bytes a run may take where the system does not tell how many it has
_FOREIGN = ("tensor(bfloat16)", "tensor(float8")  # types that onnxruntime takes and gives as bytes alone


class Refused(Exception):
    """The model cannot be run on these inputs; the message says why."""


class Runner(Protocol):
    """A model that can be run."""

    @property
    def label(self) -> str:
        """What it is called in messages."""

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """Its outputs by name, in order: arrays, lists and dicts of them. Raises Refused."""


class Session:
    """An ONNX model in onnxruntime, on the CPU."""

    def __init__(self, path: str, seed: int, time_limit: float = TIME_LIMIT) -> None:
        """Raises CkptError `package-missing`, `model-refused`."""
        try:
            import onnxruntime
        except ImportError:
            raise CkptError(
                "package-missing", "running a model needs onnxruntime", path, "pip install onnx onnxruntime"
            ) from None
        self.label = path
        self._time_limit = time_limit
        onnxruntime.set_seed(seed)
        onnxruntime.set_default_logger_severity(4)  # what goes wrong is raised as well
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.load_model_format", "ONNX")  # whatever the file is called
        settings.add_session_config_entry("session.use_env_allocators", "1" if _bound_memory() else "0")
        try:
            self._session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no class in common
            raise CkptError(
                "model-refused", f"onnxruntime cannot load it: {one_line(error)}", path
            ) from error
        values = (*self._session.get_inputs(), *self._session.get_outputs())
        self._foreign = any(value.type.startswith(_FOREIGN) for value in values)
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """Raises Refused, and CkptError `time-limit`."""
        from threading import Timer

        import onnxruntime

        settings = onnxruntime.RunOptions()
        settings.log_severity_level = 4
        timer = Timer(self._time_limit, lambda: setattr(settings, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            found = self._run(arrays, settings)
        except Exception as error:
            if settings.terminate:
                message = f"a run took more than {self._time_limit:g} seconds"
                raise CkptError(
                    "time-limit", message, self.label, "--time-limit SECONDS gives it longer"
                ) from None
            raise Refused(one_line(error)) from error
        finally:
            timer.cancel()
        return dict(zip(self.outputs, found, strict=True))

    def _run(self, arrays: Arrays, settings: Any) -> list[Any]:
        names = list(self.outputs)
        if not self._foreign:
            return list(self._session.run(names, dict(arrays), settings))
        feed = {name: _ort_value(array) for name, array in arrays.items()}
        return [_array(value) for value in self._session.run_with_ort_values(names, feed, settings)]


@cache
def _bound_memory() -> bool:
    """Give onnxruntime one arena, for all models of this process, of no more bytes than the machine has."""
    import onnxruntime

    try:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        limit = _UNKNOWN_MEMORY
    kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    arena = {"max_mem": limit, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1}
    try:
        config = onnxruntime.OrtArenaCfg({**arena, "max_dead_bytes_per_chunk": -1})
        onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kinds), config)
    except RuntimeError:  # whoever uses this process has made one before, or this build has none
        return False
    return True


def _ort_value(array: "Array") -> Any:
    """The value for onnxruntime; types that numpy lacks go as their bytes."""
    from onnxruntime import OrtValue

    number = next((n for n, dtype in BY_ONNX.items() if dtype.numpy == array.dtype.name), None)
    if array.dtype.kind != "V" or number is None:
        return OrtValue.ortvalue_from_numpy(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.dtype.itemsize}"), number)


def _array(value: Any) -> Any:
    """The array of a value of onnxruntime, which gives no array of a type that numpy lacks."""
    if not value.is_tensor() or not value.data_type().startswith(_FOREIGN):
        return value.numpy()
    import ctypes
    from math import prod

    import numpy as np

    from ckptkit.core.arrays import numpy_dtype

    kind = numpy_dtype(BY_ONNX[value.element_type()])
    data = ctypes.string_at(value.data_ptr(), prod(value.shape()) * kind.itemsize)
    return np.frombuffer(data, kind).reshape(value.shape())


class Module:
    """A PyTorch module in evaluation mode, run on the CPU without gradients, for as long as it takes."""

    def __init__(self, label: str, module: Any, outputs: Sequence[str], seed: int) -> None:
        import torch

        self.label = label
        self._module = module.eval()
        self._outputs = outputs
        torch.manual_seed(seed)

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """Inputs go by name where `forward` has parameters of these names, else by position. Raises Refused."""
        import torch

        try:
            tensors = {name: _torch_tensor(array) for name, array in arrays.items()}
            by_name = tensors.keys() <= _parameters(self._module.forward)
            with torch.no_grad(), users_code():
                found = self._module(**tensors) if by_name else self._module(*tensors.values())
            values = [_torch_array(value) for value in flat(found) if isinstance(value, torch.Tensor)]
        except Exception as error:  # whatever the user's code raises
            raise Refused(f"{type(error).__name__}: {one_line(error)}") from error
        if len(values) != len(self._outputs):
            raise Refused(f"{len(values)} outputs, where the graph has {len(self._outputs)}")
        return dict(zip(self._outputs, values, strict=True))


def _torch_tensor(array: "Array") -> Any:
    import torch

    if array.dtype.kind != "V":
        return torch.from_numpy(array.copy())
    whole = torch.from_numpy(array.view(f"i{array.dtype.itemsize}").copy())
    return whole.view(getattr(torch, array.dtype.name))


def _torch_array(tensor: Any) -> "Array":
    """The array of a tensor; of a type that numpy lacks, one of ml_dtypes."""
    import torch

    from ckptkit.core.arrays import numpy_dtype

    tensor = tensor.detach().cpu().contiguous()
    kind = BY_TORCH[str(tensor.dtype).removeprefix("torch.")]
    if kind.kind != "float" or kind.numpy is None or kind.bits > 16 or kind.name == "float16":
        plain: Array = tensor.numpy()
        return plain
    whole = tensor.view(torch.int16 if kind.bits == 16 else torch.int8).numpy()
    given: Array = whole.view(numpy_dtype(kind))
    return given


def _parameters(forward: Any) -> set[str]:
    from inspect import signature

    return set(signature(forward).parameters)


def flat(value: Any) -> list[Any]:
    """The leaves of nested lists, tuples and dicts in order, as the exporter numbers outputs."""
    import torch

    return list(torch.utils._pytree.tree_leaves(dict(value) if isinstance(value, Mapping) else value))
