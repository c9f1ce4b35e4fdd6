"""Why a checkpoint does not fit its target: the likely cause of each difference, and what mends it.

Each explanation rests on names and shapes alone.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ckptkit.core.graph import TensorGraph
from ckptkit.match.fit import mending
from ckptkit.match.fit.alike import alike
from ckptkit.match.fit.compare import Fit, Mismatch, concrete
from ckptkit.match.fit.mending import Mend
from ckptkit.match.fit.renaming import AVERAGED
from ckptkit.targets.target import Target

_EMBEDDING = re.compile(
    r"embed_tokens|word_embed|wte|tok_embed|token_embed|embed_in|shared\.weight|lm_head|decoder\.(?:weight|bias)$"
    r"|predictions\.bias"
)
_POSITION = re.compile(r"pos_embed|position|wpe|positional|relative_position")
_HEAD = re.compile(
    r"(?:^|\.)(?!cls_token)(?:fc|classifier|classif\w*|heads?|logits|score|out_proj|linear|last_linear|output|[\w]*_head|[\w]*_headers?"
    r"|cls|cls_\w+|box_predictor|predictor)(?:\.|$)"
)
_QUANTIZED = (
    "int8", "uint8", "int4", "uint4", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "qint8", "quint8",
)  # fmt: skip
_SCALES = re.compile(r"(?:scales?|scale_inv|weight_scale\w*|absmax|quant_map|SCB|qzeros|zero_points?|g_idx)$")
_SEGMENTS = 24  # of a name in which numbers of layers are looked for; real ones have a dozen
CASTS = ("float64", "float32", "float16", "bfloat16")  # what `convert --dtype` casts
_OUTPUT = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_projection|decoder)\.weight$")
_INPUT = re.compile(
    r"(?:embed_tokens|word_embeddings|wte|tok_embeddings|token_embedding|embed_in|shared)\.weight$"
)
_BUFFERS = (
    "position_ids",
    "token_type_ids",
    "inv_freq",
    "masked_bias",
    "attn.bias",
    "relative_position_index",
)
# Projections that some code keeps apart and other code keeps as one tensor: the whole, its parts in order.
_FUSED = (
    *(
        (whole, parts)
        for whole in ("qkv", "qkv_proj", "query_key_value", "c_attn", "in_proj", "Wqkv", "wqkv")
        for parts in (
            ("q", "k", "v"), ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"),
            ("to_q", "to_k", "to_v"), ("q_lin", "k_lin", "v_lin"),
        )
    ),
    ("kv", ("k", "v")),
    ("kv_proj", ("k_proj", "v_proj")),
    ("gate_up_proj", ("gate_proj", "up_proj")),
)  # fmt: skip

_PARTS = "weight normalisation: whole on one side, in two parts on the other"
_NORMS = "older and newer names of the parts of a weight normalisation"
_GREEK = "gamma and beta on one side, weight and bias on the other"
# Ends of names that mean the same: one side's, the other side's, what is said.
_SPELLINGS = (
    ("weight", "gamma", _GREEK),
    ("bias", "beta", _GREEK),
    ("weight", "weight_g", _PARTS),
    ("weight", "weight_v", _PARTS),
    ("weight", "parametrizations.weight.original0", _PARTS),
    ("weight", "parametrizations.weight.original1", _PARTS),
    ("weight_g", "parametrizations.weight.original0", _NORMS),
    ("weight_v", "parametrizations.weight.original1", _NORMS),
)

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")  # of a batch norm
_EXPORTED = re.compile(r"onnx::\w+_\d+|val_\d+")  # names that torch's exporters make

GAP = "a gap in the layers of the checkpoint"
FEWER = "the checkpoint has fewer layers than the target"
MORE = "the checkpoint has more layers than the target"


class Reason(NamedTuple):
    """The likely cause of one difference, "" if nothing tells; and what mends it, if anything does.

    `step` is `drop`, `folder` (read it instead of one shard), `dtype:` and the one to cast to, `fit` (training it anew
    from what fits is usual), or "".
    """

    cause: str = ""
    step: str = ""
    rule: Mend | None = None


class Causes:
    """The likely causes of a comparison's differences."""

    def __init__(self, graph: TensorGraph, found: Fit, target: Target) -> None:
        self.found = found
        self.target = target
        self.lone = any(finding.code == "lone-shard" for finding in graph.findings)
        self.lacking = set(found.missing)
        self.extra = set(found.unexpected)
        self.layers = _numbers(found.tensors)
        self.wanted = _numbers(target.tensors)
        self.tied = {name: group for group in target.ties for name in group}
        self.quantised = {_stem(n) for n, t in found.tensors.items() if t.dtype.name in _QUANTIZED}
        self.scaled = {_stem(name) for name in found.tensors if _SCALES.search(name)}
        self.stems = set(map(_stem, found.tensors))
        self.norms, self.wanted_norms = _norms(found.tensors), _norms(target.tensors)
        self.folded = bool(found.fitting) and bool(self.norms) != bool(self.wanted_norms)
        self.alike = alike(found.missing, found.unexpected, self._same_shape, is_head_name)
        self.stood = {there: wanted for wanted, there in self.alike.items()}

    def missing(self, name: str) -> Reason:
        """Why a tensor is not there."""
        kept = next((other for other in self.tied.get(name, ()) if other in self.found.tensors), None)
        if kept is not None:
            cause = f"tied to {kept}, which is there: only one name was saved"
            return Reason(cause, rule=mending.tied(name, kept))
        if self.lone:
            return Reason("this is one shard of several", "folder")
        if fused := self._fused_here(name) or self._fused_there(name):
            return fused
        if _SCALES.search(name) and _stem(name) in self.stems:
            if _stem(name) in self.quantised:
                return Reason("a quantised weight without its scales means nothing")
            return Reason("the target is quantised, the checkpoint is not")
        if spelt := self._spelt(name, self.extra):
            return Reason(spelt[0], rule=mending.renamed(spelt[1], name) if spelt[0] != _PARTS else None)
        if near := self.alike.get(name):
            return Reason(f"perhaps {near} under another name", rule=mending.renamed(near, name))
        if self._is_folded(name, self.wanted_norms):
            return Reason("batch norms are folded into the layers before them, by an exporter")
        if layers := _layers(name, self.layers):
            return Reason(layers)
        if embedding := self._output_of(name):
            return Reason(f"usually tied to {embedding}, which is there", rule=mending.tied(name, embedding))
        return Reason("saved without its head", "fit") if is_head_name(name) else Reason()

    def unexpected(self, name: str) -> Reason:
        """Why a tensor is there that nothing expects."""
        if name.endswith(_BUFFERS):
            return Reason("a buffer that newer code computes and no longer saves", "drop")
        if _SCALES.search(name):
            return Reason("belongs to a quantised weight, which the target does not have")
        if AVERAGED.search(name):
            return Reason("an averaged copy (EMA, SWA) of another tensor", "drop")
        if "lora_" in name:
            return Reason(
                "a LoRA adapter's tensor, not merged: without it the weights are those before tuning"
            )
        for whole, parts in _FUSED:
            if any(_swap(name, part, whole) & self.lacking for part in parts):
                return Reason(f"the target has {', '.join(parts)} fused into {whole}")
            if _swap(name, whole, parts[0]) & self.lacking:
                return Reason(f"{', '.join(parts)} are fused into {whole}; the target has them apart")
        if spelt := self._spelt(name, self.lacking):
            return Reason(spelt[0])
        if near := self.stood.get(name):
            return Reason(f"perhaps {near} under another name")
        if self._is_folded(name, self.norms):
            return Reason("the target has batch norms folded into the layers before them")
        if _EXPORTED.fullmatch(name):
            return Reason("named by an exporter; diff finds tensors by their values")
        return Reason(MORE) if _layers(name, self.wanted) == FEWER else Reason()

    def mismatch(self, item: Mismatch) -> Reason:
        """Why a tensor is of another dtype or shape."""
        tensor = self.found.tensors[item.name]
        if item.what == "dtype":
            if item.found in _QUANTIZED:
                scaled = _stem(item.name) in self.scaled
                return Reason("quantised" if scaled else "quantised, and its scales are missing")
            castable = item.expected in CASTS and item.found in CASTS
            return Reason(
                "saved in another precision" if tensor.dtype.kind == "float" else "",
                f"dtype:{item.expected}" if castable else "",
            )
        return _shape(item.name, self._expected(item.name), tensor.shape, outputs=self._is_output(item.name))

    def _is_folded(self, name: str, norms: set[str]) -> bool:
        """Whether a tensor belongs to a batch norm that only one side has."""
        stem, _, part = name.rpartition(".")
        return self.folded and part in _NORM and stem in norms

    def _is_output(self, name: str) -> bool:
        """Whether the rows of a tensor are a head's outputs, and no more than their number differs."""
        expected, shape = self._expected(name), self.found.tensors[name].shape
        if not is_head_name(name) or (is_vocabulary(name) and "lm_head" not in name):
            return False
        if not len(expected) == len(shape) > 0 or expected[1:] != shape[1:]:
            return False
        if not name.endswith(".bias"):
            return len(shape) > 1
        weight = name.removesuffix("bias") + "weight"  # which tells more than a single dimension does
        there = self.found.tensors.get(weight)
        if there is None or weight not in self.target.tensors:
            return True
        return len(there.shape) > 1 and self._expected(weight)[1:] == there.shape[1:]

    def _fused_here(self, name: str) -> Reason | None:
        """A part that is missing because the checkpoint has the whole."""
        for whole, parts in _FUSED:
            for part in parts:
                for there in _swap(name, part, whole) & self.extra:
                    others = [
                        other for p in parts for other in _swap(name, part, p) & self.target.tensors.keys()
                    ]
                    wanted = {other: self._sizes(other) for other in others}
                    ordered = whole in mending.IN_ORDER and len(wanted) == len(parts)
                    rule = mending.split(there, self.found.tensors[there].shape, wanted) if ordered else None
                    return Reason(f"{', '.join(parts)} are fused into {whole} in the checkpoint", rule=rule)
        return None

    def _fused_there(self, name: str) -> Reason | None:
        """A whole that is missing because the checkpoint has the parts."""
        for whole, parts in _FUSED:
            found = [next(iter(_swap(name, whole, part) & self.extra), "") for part in parts]
            if any(found):
                shapes = {other: self.found.tensors[other].shape for other in found if other}
                ordered = whole in mending.IN_ORDER and all(found)
                rule = mending.concat(shapes, name, self._sizes(name)) if ordered else None
                cause = f"the checkpoint has {', '.join(parts)} apart, the target has {whole}"
                return Reason(cause, rule=rule)
        return None

    def _output_of(self, name: str) -> str:
        """The embedding that the output matrix of a language model is usually tied to; "" if there is none."""
        if not _OUTPUT.search(name):
            return ""
        shape = self._expected(name)
        alike = [n for n, t in self.found.tensors.items() if t.shape == shape and _INPUT.search(n)]
        return alike[0] if len(alike) == 1 else ""

    def _spelt(self, name: str, others: set[str]) -> tuple[str, str] | None:
        """What is said where another spelling of the name's end is among the others, and that name."""
        for one, other, said in _SPELLINGS:
            for end, instead in ((one, other), (other, one)):
                stem = name.removesuffix("." + end)
                if stem != name and f"{stem}.{instead}" in others:
                    return said, f"{stem}.{instead}"
        return None

    def is_head(self, item: Mismatch) -> bool:
        """Whether the tensor belongs to the outputs of a model, and only how many there are differs."""
        if self.target.tensors[item.name].head:
            return item.what == "shape"
        return item.what == "shape" and self._is_output(item.name)

    def _expected(self, name: str) -> tuple[int | None, ...]:
        return concrete(self.target.tensors[name], self.found.dimensions) or ()

    def _sizes(self, name: str) -> tuple[int, ...]:
        """The shape expected, -1 for a size that is open."""
        return tuple(-1 if size is None else size for size in self._expected(name))

    def _same_shape(self, wanted: str, there: str) -> bool:
        return self._expected(wanted) == self.found.tensors[there].shape


def covers(found: Fit, target: Target) -> bool:
    """Whether every missing tensor is there under a name that differs in a segment."""

    def same(wanted: str, there: str) -> bool:
        return concrete(target.tensors[wanted], found.dimensions) == found.tensors[there].shape

    return len(alike(found.missing, found.unexpected, same, is_head_name)) == len(found.missing)


def is_vocabulary(name: str) -> bool:
    """Whether the name says that the rows of a tensor are those of a vocabulary."""
    return _EMBEDDING.search(name) is not None


def is_head_name(name: str) -> bool:
    """Whether the name alone says that a tensor belongs to the outputs of a model.

    What stands within a numbered layer does not, whatever it is called (`layer.0.attention.output`).
    """
    match = _HEAD.search(name)
    return match is not None and not any(part.isdigit() for part in name[: match.start()].split("."))


def _norms(names: Iterable[str]) -> set[str]:
    """The batch norms."""
    return {name.removesuffix(".running_mean") for name in names if name.endswith(".running_mean")}


def _shape(name: str, expected: tuple[int | None, ...], shape: tuple[int, ...], *, outputs: bool) -> Reason:
    wanted = tuple(-1 if size is None else size for size in expected)
    differing = [axis for axis, (e, f) in enumerate(zip(wanted, shape, strict=False)) if e not in (-1, f)]
    if len(wanted) == len(shape) == 2 and shape[::-1] == wanted:
        cause = "a transposed linear layer (Conv1D, or another framework's)"
        return Reason(cause, rule=mending.operated(name, "transpose"))
    if len(wanted) != len(shape):
        if [size for size in wanted if size != 1] == [size for size in shape if size != 1]:
            cause = "the same numbers with dimensions of 1 added or left out"
            return Reason(cause, rule=mending.reshaped(name, shape, wanted))
        return Reason("another kind of layer")
    if len(shape) > 2 and len(differing) > 1 and sorted(shape) == sorted(wanted):
        cause = "the same numbers with dimensions in another order (another framework's convolution)"
        return Reason(cause, rule=mending.permuted(name, shape, wanted))
    if _POSITION.search(name) and len(differing) == 1:
        cause = "position embeddings of another length or image size"
        return Reason(cause, "fit", mending.resampled(name, shape, wanted))
    if differing == [0]:
        if is_vocabulary(name):
            return Reason(f"a vocabulary of {shape[0]} instead of {wanted[0]}", "fit")
        if outputs:
            return Reason(f"{shape[0]} outputs instead of {wanted[0]}: another number of classes", "fit")
        if "embed" in name:
            return Reason(f"an embedding of {shape[0]} rows instead of {wanted[0]}", "fit")
    if len(shape) > 2 and differing and min(differing) > 1:
        return Reason("another size of the kernel", "fit")
    if differing == [1] and len(shape) == 4:
        return Reason(f"{shape[1]} input channels instead of {wanted[1]}", "fit")
    return Reason("a layer of another width")


def _stem(name: str) -> str:
    """What a weight and its scales have in common."""
    stem = name.rpartition(".")[0]
    return stem.removesuffix(".weight")


def _numbers(names: Iterable[str]) -> dict[str, set[int]]:
    """What comes before the number of a layer → the numbers that there are."""
    found: dict[str, set[int]] = {}
    for name in names:
        for lead, number in _numbered(name):
            found.setdefault(lead, set()).add(number)
    return found


def _numbered(name: str) -> Iterator[tuple[str, int]]:
    segments = name.split(".", _SEGMENTS)
    for at, segment in enumerate(segments[:-1]):
        if segment.isascii() and segment.isdigit() and len(segment) < 9:
            yield ".".join(segments[:at]), int(segment)


def _layers(name: str, others: Mapping[str, set[int]]) -> str:
    """FEWER or GAP where a layer of the name is beyond the others' layers or between them; else ""."""
    for lead, number in _numbered(name):
        there = others.get(lead, set())
        if number not in there:
            return "" if not there else FEWER if number > max(there) else GAP
    return ""


def _swap(name: str, old: str, new: str) -> set[str]:
    """The names that exchanging one segment (or its start, for `in_proj_weight`) gives."""
    segments = name.split(".")
    if old in segments:
        at = segments.index(old)
        before, after = segments[:at], segments[at + 1 :]
        swapped = {".".join([*before, new, *after])}
        if len(after) == 1:
            swapped.add(".".join([*before, f"{new}_{after[0]}"]))
        return swapped
    head, _, last = name.rpartition(".")
    return {f"{head}.{new}.{last[len(old) + 1 :]}"} if last.startswith(old + "_") else set()


def same_shapes(found: Fit, target: Target) -> bool:
    """Whether what is unexpected has the shapes of what is missing: the same model under other names."""
    there: Counter[tuple[int | None, ...]] = Counter(found.tensors[name].shape for name in found.unexpected)
    wanted = Counter(concrete(target.tensors[name], found.dimensions) or () for name in found.missing)
    common = sum((there & wanted).values())
    return bool(found.missing) and common >= 0.95 * max(len(found.missing), len(found.unexpected))
