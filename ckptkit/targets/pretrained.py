"""The model that a config.json of transformers describes, made without weights, network or code of the folder.

A configuration is data here. What could make a library read, fetch or import something is taken out of it; the classes
come from transformers' own tables; the number of modules is bounded. Runs in a process of its own: see
`ckptkit.targets.instantiate`. Source of the tables and of the loader's exceptions: transformers 5.23.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ckptkit.core.errors import CkptError
from ckptkit.core.tensor import Tensor
from ckptkit.targets.factory import one_line, torch_tensors
from ckptkit.targets.instantiate import Manifest, Weight, weights_of

_MODULES = 200_000  # modules and parameters of one model
# Keys that name code, files, repositories or attributes to look up; none changes what weights there are.
_LEFT_OUT = ("auto_map", "custom_pipelines", "quantization_config", "name_or_path", "use_pretrained_backbone")


def make(config: dict[str, Any], where: str, bound: Callable[[], None]) -> Manifest:
    """Make the model on the meta device; `bound` is called once the libraries are loaded.

    Raises CkptError `package-missing`, `config-unsupported`, `over-budget`.
    """
    described = describe(config, where)
    bound()
    with _making(where):
        import torch

        settings = described.config_class.from_dict(plain(config))
        with torch.device("meta"), _few_modules(where):
            model = described.model_class._from_config(settings, attn_implementation="eager")
    buffers = [name for name, _ in model.named_buffers()]
    saved, held = _as_saved(model), weights_of(model)
    return Manifest(
        saved,
        described.model_class.__name__,
        held if {w[:3] for w in saved} != {w[:3] for w in held} else (),
        described.notes,
        str(getattr(model, "base_model_prefix", "")),
        tuple(_ignored(model, buffers)),
        tuple(map(str, getattr(model, "_keys_to_ignore_on_load_missing", None) or ())),
    )


def load(config: dict[str, Any], weights: Mapping[str, Tensor], where: str) -> Any:
    """The model with the weights of a checkpoint, on the CPU, in this process: let `make` bound it elsewhere before.

    Names are those of files; transformers puts them where it keeps them in memory. Nothing is kept from one call to
    the next (`use_cache`). Raises as `make`, and CkptError `module-misfit` when weights are missing or of other shapes.
    """
    described = describe(config, where)
    with _making(where):
        import transformers

        settings = described.config_class.from_dict(plain(config))
        settings.use_cache = False
        transformers.utils.logging.disable_progress_bar()
        model, told = described.model_class.from_pretrained(
            None,
            config=settings,
            state_dict=torch_tensors(weights),
            attn_implementation="eager",
            dtype="auto",
            local_files_only=True,
            output_loading_info=True,
        )
    wrong = sorted((*told["missing_keys"], *map(str, told["mismatched_keys"])))
    if wrong:
        message = f"the weights do not fit: {', '.join(wrong)[:500]}"
        raise CkptError("module-misfit", message, where)
    return model


class Described(NamedTuple):
    """The classes that a configuration means, and what is worth telling about the choice."""

    config_class: Any
    model_class: Any
    notes: tuple[str, ...]


def describe(config: Mapping[str, Any], where: str) -> Described:
    """Raises CkptError `package-missing`, `config-unsupported`."""
    try:
        import torch
        import transformers

        del torch  # without it transformers has no models
    except ImportError as error:
        missing = f"a config.json needs transformers and torch, and {one_line(error)}"
        hint = "pip install torch transformers (the extra hf); a weights file as target needs neither"
        raise CkptError("package-missing", missing, where, hint) from None
    transformers.utils.logging.set_verbosity_error()
    kind = config.get("model_type")
    with _making(where):
        config_class, known = _classes(kind, where)
    texts = _texts(config.get("architectures"))
    named = [name for name in texts if name in known]
    if named or not texts:
        return Described(config_class, known[named[0]] if named else next(iter(known.values())), ())
    wanted = ", ".join(texts)[:200]
    note = f"transformers has no {wanted} for {kind!r}; its first model of that type is taken"
    return Described(config_class, next(iter(known.values())), (note,))


@contextmanager
def _making(where: str) -> Iterator[None]:
    """Whatever transformers makes of a configuration that it cannot work with."""
    try:
        yield
    except (CkptError, MemoryError):
        raise
    except Exception as error:
        message = f"transformers makes no model of it: {type(error).__name__}: {one_line(error)}"
        raise CkptError("config-unsupported", message, where) from error


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that name code, places or attributes, in nested ones too. No recursion."""
    top: dict[str, Any] = {}
    todo: list[tuple[Any, Any]] = [(config, top)]
    while todo:
        given, made = todo.pop()
        items = given.items() if isinstance(given, Mapping) else enumerate(given)
        for key, value in items:
            if isinstance(made, dict) and not _kept(str(key)):
                continue
            copy: Any = {} if isinstance(value, dict) else [] if isinstance(value, list) else value
            if copy is not value:
                todo.append((value, copy))
            if isinstance(made, dict):
                made[key] = copy
            else:
                made.append(copy)
    return top


def _kept(key: str) -> bool:
    names = key.endswith("_implementation") or "dtype" in key  # which kernel; which attribute of torch
    return not (key.startswith("_") or names or key in _LEFT_OUT)


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _classes(kind: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """The configuration class of a model type, and its models by name, the plain one first.

    Both come out of transformers' tables: a name of the file is a key there, and never an attribute.
    """
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    if not isinstance(kind, str) or kind not in configuration_auto.CONFIG_MAPPING:
        from difflib import get_close_matches

        near = get_close_matches(str(kind), configuration_auto.CONFIG_MAPPING, 3) if kind else []
        message = f"transformers {transformers.__version__} has no model type {str(kind)[:80]!r}"
        hint = "code beside a config.json is never run"
        hint += f"; meant: {', '.join(near)}" if near else ""
        raise CkptError("config-unsupported", message, where, hint)
    config_class = configuration_auto.CONFIG_MAPPING[kind]
    found: dict[str, Any] = {}
    for name, table in sorted(vars(modeling_auto).items(), key=lambda item: item[0] != "MODEL_MAPPING"):
        if name.endswith("MAPPING"):
            entry = table.get(config_class, ())
            for model in entry if isinstance(entry, (tuple, list)) else (entry,):
                found.setdefault(model.__name__, model)
    for module in _modules(found.values()):  # models that no table lists, beside those that one does
        for model in vars(module).values():
            if isinstance(model, type) and model.__module__ == module.__name__ and _is_model(model):
                found.setdefault(model.__name__, model)
    if not found:
        raise CkptError("config-unsupported", f"transformers has no model of the type {kind!r}", where)
    return config_class, found


def _is_model(made: type) -> bool:
    from transformers import PreTrainedModel

    return issubclass(made, PreTrainedModel) and getattr(made, "config_class", None) is not None


def _modules(models: Iterable[Any]) -> list[Any]:
    import sys

    return [sys.modules[name] for name in dict.fromkeys(model.__module__ for model in models)]


@contextmanager
def _few_modules(where: str) -> Iterator[None]:
    """A number in a configuration decides how many layers are made: not without end."""
    from torch.nn.modules import module

    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > _MODULES:
            message = f"a model of more than {_MODULES:,} modules and parameters"
            raise CkptError("over-budget", message, where, "are the sizes in it right?")

    hooks = (
        module.register_module_module_registration_hook(counted),
        module.register_module_parameter_registration_hook(counted),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _ignored(model: Any, buffers: Iterable[str]) -> Iterable[str]:
    """What transformers passes over: what a class says, and buffers that older versions saved."""
    yield from map(str, getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    for ending, pattern in (
        ("rotary_emb.inv_freq", r"rotary_emb\.inv_freq"),
        ("position_ids", r"(^|\.)position_ids$"),
    ):
        if any(name.endswith(ending) for name in buffers):
            yield pattern


def _as_saved(model: Any) -> tuple[Weight, ...]:
    """The weights under the names and in the layouts of files: newer versions keep others in memory."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5 they are the same
        return weights_of(model)

    class Saved:
        """What `save_pretrained` would write."""

        def state_dict(self, keep_vars: bool) -> Any:
            return revert_weight_conversion(model, model.state_dict(keep_vars=keep_vars))

    return weights_of(Saved())
