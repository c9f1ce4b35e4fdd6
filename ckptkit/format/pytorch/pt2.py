"""torch.export archives (.pt2): raw weights beside JSON that says what they are.

    ROOT/archive_format                          `pt2`
    ROOT/models/MODEL.json                       the graph, not read
    ROOT/data/weights/MODEL_weights_config.json  {"config": {NAME: payload}}: parameters and persistent buffers
    ROOT/data/constants/MODEL_constants_config.json    the same for other buffers, attributes, custom objects
    ROOT/data/weights/weight_0, ROOT/data/constants/tensor_0, …    storages

    payload: path_name of the storage · is_param · use_pickle (the member is a torch archive of its own) ·
             tensor_meta: dtype (a number) · sizes, strides, storage_offset as {"as_int": n}

Names that share a `path_name` are tied or views of one storage. torch 2.1 to 2.7 wrote an archive without a root
folder instead, which holds whole torch archives: `serialized_state_dict.pt`, `serialized_constants.pt`.
Source: torch 2.13 `_export/serde/schema.py` and `export/pt2_archive`.
"""

import json
from collections.abc import Callable
from typing import Any

from ckptkit.core.dtypes import DTYPES, DType
from ckptkit.core.errors import CkptError
from ckptkit.core.escaping import shell_word
from ckptkit.core.findings import Finding
from ckptkit.core.graph import Section
from ckptkit.core.options import ReadOptions
from ckptkit.core.storage import FileStorage, InflatedStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.format.pytorch.archive import Archive
from ckptkit.format.pytorch.assemble import Assembly

WEIGHTS, CONSTANTS = "weights", "constants"
OLD_MEMBERS = {WEIGHTS: "serialized_state_dict.pt", CONSTANTS: "serialized_constants.pt"}

_DTYPES = {
    number: DTYPES[name]
    for number, name in {
        1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
        9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
        29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz",
        33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
    }.items()
}  # fmt: skip

_STRIDED = 7  # the number of the layout; others are pickled

Pickled = Callable[[Archive], Tensor | None]


def models(archive: Archive) -> list[str]:
    """Names of the models in the archive, in its order."""
    suffix = f"_{WEIGHTS}_config.json"
    folder = f"data/{WEIGHTS}/"
    return [n[len(folder) : -len(suffix)] for n in archive.below(folder) if n.endswith(suffix)]


def payloads(
    archive: Archive, model: str, what: str, pickled: Pickled
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of the weights or of the constants of one model, and the names of payloads that are none.

    `pickled` gives the tensor that an archive within the archive holds, or None if it holds something else.
    Raises CkptError `json-invalid`, `outside-folder`, `storage-missing`, `view-invalid`, `dtype-unknown`.
    """
    name = f"data/{what}/{model}_{what}_config.json"
    if name not in archive:
        return {}, []
    where = f"{archive.file.path}: {name}"
    try:
        config = json.loads(
            archive.read(name, archive.budgets.index_bytes), object_pairs_hook=lambda p: _unique(p, where)
        )
        entries = config["config"]
        if type(entries) is not dict:
            raise TypeError
    except (ValueError, RecursionError, KeyError, TypeError):
        raise CkptError("json-invalid", "this is not the JSON of a weights configuration", where) from None
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    storages: dict[str, FileStorage | InflatedStorage] = {}
    for label, payload in entries.items():
        found: Tensor | None
        try:
            path = f"data/{what}/{_member(payload['path_name'], label)}"
            if payload["use_pickle"]:
                found = (
                    pickled(archive.nested(path))
                    if path.rpartition("/")[2].startswith(("weight_", "tensor_"))
                    else None
                )
            else:
                storage = storages.get(path)
                if storage is None:
                    storage = storages[path] = archive.storage(path)
                kind = "parameter" if payload["is_param"] else "buffer" if what == WEIGHTS else "constant"
                found = _tensor(storage, payload["tensor_meta"], archive.big_endian, kind, label)
        except (KeyError, TypeError):
            raise CkptError("json-invalid", f"the entry {label!r} is incomplete", where) from None
        if found is None:
            others.append(label)
        else:
            tensors[label] = found
    return tensors, others


def select(parts: dict[str, dict[str, Tensor]], options: ReadOptions) -> Assembly:
    """The tensors of the section wanted; a section is a part, such as "weights" or "model.constants".

    Raises CkptError `section-unknown`, and `ambiguous-section` for an archive of several models.
    """
    weights = [part for part in parts if part == WEIGHTS or part.endswith(f".{WEIGHTS}")]
    wanted, findings = options.section, []
    if wanted is None and len(weights) == 1:
        wanted = weights[0]
    elif wanted is None and len(weights) > 1:
        names = ", ".join(weights[:5])
        choices = "\n".join(f"--section {shell_word(name)}" for name in [*weights[:20], "all"])
        error = CkptError("ambiguous-section", f"the archive holds several models: {names}", None, choices)
        if options.ambiguous != "all":
            raise error
        findings.append(Finding(error.code, "note", "", error.message, choices))
    shown = tuple(
        Section(
            part,
            "weights" if part in weights else "other",
            len(tensors),
            sum(tensor.nbytes for tensor in tensors.values()),
        )
        for part, tensors in parts.items()
        if tensors or part in weights
    )
    if wanted in parts:
        return Assembly(dict(parts[wanted]), wanted, shown, (), {}, ())
    if wanted not in {None, "all"}:
        known = ", ".join([*parts, "all"])
        raise CkptError(
            "section-unknown", f"the archive has no section {wanted!r}", None, f"there is {known}"
        )
    everything = {f"{part}.{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
    return Assembly(everything, "", shown, (), {}, tuple(findings))


def _tensor(
    storage: FileStorage | InflatedStorage, meta: dict[str, Any], big_endian: bool, kind: str, name: str
) -> Tensor:
    dtype: DType | None = _DTYPES.get(meta["dtype"])
    if dtype is None:
        raise CkptError("dtype-unknown", f"{meta['dtype']!r} is no number of an element type", name)
    if meta["layout"] != _STRIDED:
        raise CkptError("json-invalid", f"layout {meta['layout']!r} cannot be stored as plain bytes", name)
    shape = tuple(_integer(n, name) for n in meta["sizes"])
    strides = tuple(_integer(n, name) for n in meta["strides"])
    start = _integer(meta["storage_offset"], name)
    if storage.nbytes * 8 % dtype.bits:
        raise CkptError("size-mismatch", f"its storage of {storage.nbytes} bytes is no whole number", name)
    try:
        return view(storage, dtype, shape, strides, start, swap=big_endian and dtype.parts > 1, kind=kind)
    except CkptError as error:
        raise CkptError(error.code, error.message, name, error.hint) from None


def _integer(value: dict[str, Any], name: str) -> int:
    number = value.get("as_int") if type(value) is dict else None
    if type(number) is not int:
        raise CkptError("json-invalid", f"a size is not a number but {str(value)[:80]}", name)
    return number


def _member(path: object, label: str) -> str:
    if type(path) is not str or not path or "/" in path or "\\" in path or path in {".", ".."}:
        raise CkptError("outside-folder", f"names a member outside its folder: {str(path)[:80]!r}", label)
    return path


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CkptError("duplicate-name", f"the name {name!r} stands twice", where)
    return found
