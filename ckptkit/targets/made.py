"""Targets that are made: the modules of users, and the models that a config.json describes."""

import os
import re
from collections.abc import Iterable

from ckptkit.core.budgets import DEFAULT_BUDGETS
from ckptkit.core.dtypes import BY_TORCH
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.format import strict_json
from ckptkit.targets.factory import refuse_code
from ckptkit.targets.instantiate import TIME_LIMIT, Manifest, Weight, manifest
from ckptkit.targets.target import Loader, Spec, Target

CONFIG = "config.json"


def of_factory(spec: str, *, allow_code: bool = False, time_limit: float = TIME_LIMIT) -> Target:
    """The module that the factory `package.module:factory` makes on torch's meta device. Runs the user's code.

    Raises CkptError `code-refused` unless that is allowed, and as `manifest` does.
    """
    refuse_code(spec, allow_code)
    return _target(manifest("module", spec, spec, time_limit), spec, "module")


def of_config(path: str, *, time_limit: float = TIME_LIMIT) -> Target:
    """The model that transformers makes of a config.json, or of that in a folder.

    Raises CkptError `config-unsupported`, `json-invalid`, and as `manifest` does.
    """
    file = File.at(os.path.join(path, CONFIG) if os.path.isdir(path) else path)
    config = strict_json.load(file, DEFAULT_BUDGETS.index_bytes)
    if "model_type" not in config:
        message = "this names no model type of transformers"
        raise CkptError("config-unsupported", message, file.path, "a weights file can be a target as well")
    if config.get("quantization_config") is not None:
        message = "it describes quantised weights, whose tensors are the quantiser's own affair"
        hint = "check against a good copy, or a contract that was made of one"
        raise CkptError("config-unsupported", message, file.path, hint)
    made = manifest("config", config, file.path, time_limit)
    stated = config.get("dtype", config.get("torch_dtype"))
    loader = Loader("transformers", f"{made.prefix}." if made.prefix else "", made.ignored)
    dtype = stated if isinstance(stated, str) and stated in BY_TORCH else ""
    return _target(made, path, "config", loader, dtype)


def is_config(path: str) -> bool:
    """Whether a path is a configuration of transformers: a JSON file that is no index, or a folder with such a one."""
    if os.path.isdir(path):
        file = os.path.join(path, CONFIG)
        if not os.path.isfile(file):
            return False
        return "model_type" in strict_json.load(File.at(file), DEFAULT_BUDGETS.index_bytes)
    return path.endswith(".json") and not path.endswith(".index.json")


def _target(made: Manifest, path: str, kind: str, loader: Loader | None = None, dtype: str = "") -> Target:
    optional = re.compile("|".join(f"(?:{pattern})" for pattern in made.optional)) if made.optional else None

    def of(weights: Iterable[Weight], others: tuple[Target, ...] = ()) -> Target:
        tensors = {}
        groups: dict[int, list[str]] = {}
        for weight in weights:
            if weight.dtype not in BY_TORCH:
                raise CkptError("dtype-unknown", f"a weight of the dtype {weight.dtype}", weight.name)
            tensors[weight.name] = Tensor(BY_TORCH[weight.dtype], weight.shape)
            groups.setdefault(weight.storage, []).append(weight.name)
        may_lack = {name for name in tensors if optional and optional.search(name)}
        specs = {name: Spec(shape=t.shape, optional=name in may_lack) for name, t in tensors.items()}
        ties = tuple(tuple(names) for names in groups.values() if len(names) > 1)
        source = TensorGraph(tensors, Origin(path, kind))
        return Target(
            path, kind, specs, ties=ties, source=source, loader=loader, made=made.made, dtype=dtype,
            notes=made.notes, others=others,
        )  # fmt: skip

    # transformers loads what a module holds as well, saved by torch under its names.
    return of(made.weights, (of(made.others),) if made.others else ())
