"""Running a model on arrays: an ONNX file by onnxruntime, a PyTorch module by torch. Nothing else loads either."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ckptkit.core.errors import CkptError
from ckptkit.match.proof.samples import Arrays
from ckptkit.targets.factory import one_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Refused(Exception):
    """The model cannot be run on these inputs; the message says why."""


class Runner(Protocol):
    """A model that can be run."""

    @property
    def label(self) -> str:
        """What it is called in messages."""

    def run(self, arrays: Arrays) -> dict[str, "Array"]:
        """Its outputs by name, in order. Raises Refused."""


class Session:
    """An ONNX model in onnxruntime, on the CPU."""

    def __init__(self, path: str, seed: int) -> None:
        """Raises CkptError `package-missing`, `model-refused`."""
        try:
            import onnxruntime
        except ImportError:
            raise CkptError(
                "package-missing", "running a model needs onnxruntime", path, "pip install onnx onnxruntime"
            ) from None
        self.label = path
        onnxruntime.set_seed(seed)
        onnxruntime.set_default_logger_severity(4)  # what goes wrong is raised as well
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no class in common
            raise CkptError(
                "model-refused", f"onnxruntime cannot load it: {one_line(error)}", path
            ) from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, arrays: Arrays) -> dict[str, "Array"]:
        import numpy as np

        try:
            found = self._session.run(list(self.outputs), dict(arrays))
        except Exception as error:
            raise Refused(one_line(error)) from error
        for name, value in zip(self.outputs, found, strict=True):
            if not isinstance(value, np.ndarray):
                raise Refused(f"the output {name!r} is no tensor")
        return dict(zip(self.outputs, found, strict=True))


class Module:
    """A PyTorch module in evaluation mode, run on the CPU without gradients."""

    def __init__(self, spec: str, module: Any, outputs: Sequence[str], seed: int) -> None:
        import torch

        self.label = spec
        self._module = module.eval()
        self._outputs = outputs
        torch.manual_seed(seed)

    def run(self, arrays: Arrays) -> dict[str, "Array"]:
        """Inputs go by name where `forward` has parameters of these names, else by position."""
        import torch

        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        by_name = tensors.keys() <= _parameters(self._module.forward)
        try:
            with torch.no_grad():
                found = self._module(**tensors) if by_name else self._module(*tensors.values())
        except Exception as error:  # whatever the user's code raises
            raise Refused(one_line(error)) from error
        values = [value.detach().numpy() for value in _flat(found) if isinstance(value, torch.Tensor)]
        if len(values) != len(self._outputs):
            raise Refused(f"{len(values)} outputs, where the graph has {len(self._outputs)}")
        return dict(zip(self._outputs, values, strict=True))


def _parameters(forward: Any) -> set[str]:
    from inspect import signature

    return set(signature(forward).parameters)


def _flat(value: Any) -> list[Any]:
    """The tensors of nested lists, tuples and dicts in order, as the exporter numbers outputs."""
    import torch

    return list(torch.utils._pytree.tree_leaves(dict(value) if isinstance(value, Mapping) else value))
