"""Why a checkpoint does not fit its target: the likely cause of each difference, and the step that mends it.

Each explanation rests on names and shapes alone, and a renaming is offered only after it was tried: it must bring
more names to their places than the checkpoint's own do.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ckptkit.core.graph import TensorGraph
from ckptkit.match.fit import Fit, Mismatch, concrete
from ckptkit.match.schemes import INNER, WRAPPERS
from ckptkit.targets.target import Target

_DEEPEST = 4  # segments of a prefix that may be another's wrapper
_TRIED = 6  # prefixes of each side that are tried
_LOOKED_AT = 2_000  # names that renamings are tried on
_WORDS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning Fabric",
}
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|shadow|averaged|teacher)(?:[._]|$)", re.IGNORECASE)
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
    "int8",
    "uint8",
    "int4",
    "uint4",
    "float8_e4m3fn",
    "float8_e5m2",
    "float4_e2m1fn",
    "qint8",
    "quint8",
)
_SCALES = re.compile(r"(?:scales?|scale_inv|weight_scale\w*|absmax|quant_map|SCB|qzeros|zero_points?|g_idx)$")
_CASTS = ("float64", "float32", "float16", "bfloat16")  # what `convert --dtype` casts
_FEW = 50  # names among which a similar one is looked for
_BUFFERS = (
    "position_ids",
    "token_type_ids",
    "inv_freq",
    "masked_bias",
    "attn.bias",
    "relative_position_index",
)
# Projections that some code keeps apart and other code keeps as one tensor.
_FUSED = (
    ("qkv", ("q", "k", "v")),
    ("qkv", ("query", "key", "value")),
    ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    ("query_key_value", ("q_proj", "k_proj", "v_proj")),
    ("query_key_value", ("query", "key", "value")),
    ("c_attn", ("q_proj", "k_proj", "v_proj")),
    ("in_proj", ("q_proj", "k_proj", "v_proj")),
    ("in_proj", ("q", "k", "v")),
    ("Wqkv", ("q_proj", "k_proj", "v_proj")),
    ("gate_up_proj", ("gate_proj", "up_proj")),
)

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

FEWER = "the checkpoint has fewer layers than the target"
MORE = "the checkpoint has more layers than the target"


class Renaming(NamedTuple):
    """Names brought to the target's by a prefix.

    Attributes:
        strip, add: prefixes taken off and put before every name; "" for none.
        inner: what is taken out of the middle of names; "" for nothing.
        cause: for people.
        fitting: how many of the names looked at are then in the target.
    """

    strip: str
    add: str
    inner: str
    cause: str
    fitting: int

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of `convert` that do it; none where a prefix is not enough."""
        if self.inner:
            return ()
        return (
            *((f"strip:{self.strip}",) if self.strip else ()),
            *((f"add:{self.add}",) if self.add else ()),
        )

    def new(self, name: str) -> str:
        """The name under it."""
        if self.inner:
            name = name.replace("." + self.inner, ".")
        return self.add + name.removeprefix(self.strip)

    def before(self, name: str) -> str:
        """The name in the file, of one under it."""
        return self.strip + name.removeprefix(self.add)


def renaming(names: Iterable[str], target: Target) -> Renaming | None:
    """The prefix that brings most names to the target's; None if their own names are as good.

    Of very many names every so-manieth is looked at.
    """
    names = list(names)
    names = names[:: max(1, len(names) // _LOOKED_AT)]
    expected = target.tensors.keys()
    adding = _prefixes(expected)
    start = sum(name in expected for name in names)
    best = Renaming("", "", "", "", start)
    for inner in ("", *(inner for inner in INNER if any("." + inner in name for name in names))):
        plain = [name.replace("." + inner, ".") for name in names] if inner else names
        for strip in _prefixes(plain):
            bare = [name.removeprefix(strip) for name in plain]
            for add in adding:
                hits = sum(add + name in expected for name in bare)
                if hits > best.fitting:
                    best = Renaming(strip, add, inner, _said(strip, add, inner), hits)
    # A few chance hits (layer1.0.weight) are no explanation.
    return best if best.fitting - start >= max(2, len(names) // 4) else None


def _prefixes(names: Iterable[str]) -> list[str]:
    """ "" and the dotted prefixes that at least half of the names have, shortest first."""
    names = list(names)
    counts: Counter[str] = Counter()
    for name in names:
        end = -1
        for _ in range(_DEEPEST):
            end = name.find(".", end + 1)
            if end < 0:
                break
            counts[name[: end + 1]] += 1
    common = [prefix for prefix, count in counts.items() if 2 * count >= len(names)]
    return ["", *sorted(common, key=len)[:_TRIED]]


def _said(strip: str, add: str, inner: str) -> str:
    said = []
    if inner:
        said.append(f"names have {inner!r} within, from {_WORDS[inner]}")
    if strip:
        wrapper = next((w for w in WRAPPERS if strip.startswith(w)), "")
        by = (
            f", from {_WORDS[wrapper]}"
            if wrapper
            else ", an averaged copy"
            if _AVERAGED.search(strip)
            else ""
        )
        said.append(f"names carry the prefix {strip!r}{by}")
    if add:
        said.append(f"names lack the prefix {add!r}")
    return "; ".join(said)


class Reason(NamedTuple):
    """The likely cause of one difference, and what mends it; either may be "".

    `mend` is `drop`, `folder` (read it instead of one shard), `transpose`, or `dtype:` and the one to cast to.
    """

    cause: str = ""
    mend: str = ""


class Causes:
    """The likely causes of a comparison's differences."""

    def __init__(self, graph: TensorGraph, found: Fit, target: Target) -> None:
        self.found = found
        self.target = target
        self.lone = any(finding.code == "lone-shard" for finding in graph.findings)
        self.lacking = set(found.missing)
        self.extra = set(found.unexpected)
        self.there = _heads(found.tensors)
        self.wanted = _heads(target.tensors)
        self.tied = {name: group for group in target.ties for name in group}
        self.quantised = {_stem(n) for n, t in found.tensors.items() if t.dtype.name in _QUANTIZED}
        self.scaled = {_stem(name) for name in found.tensors if _SCALES.search(name)}
        self.stems = set(map(_stem, found.tensors))

    def missing(self, name: str) -> Reason:
        """Why a tensor is not there."""
        kept = next((other for other in self.tied.get(name, ()) if other in self.found.tensors), None)
        if kept is not None:
            return Reason(f"tied to {kept}, which is there: only one name was saved")
        if self.lone:
            return Reason("this is one shard of several", "folder")
        for whole, parts in _FUSED:
            if any(_swap(name, part, whole) & self.extra for part in parts):
                return Reason(f"{', '.join(parts)} are fused into {whole} in the checkpoint")
            if _swap(name, whole, parts[0]) & self.extra:
                return Reason(f"the checkpoint has {', '.join(parts)} apart, the target has {whole}")
        if _SCALES.search(name) and _stem(name) in self.stems:
            if _stem(name) in self.quantised:
                return Reason("a quantised weight without its scales means nothing")
            return Reason("the target is quantised, the checkpoint is not")
        if spelt := _spelt(name, self.extra):
            return Reason(spelt)
        if _deeper(name, self.there):
            return Reason(FEWER)
        near = self._near(name, (other for other in self.extra if self._same_shape(other, name)))
        if near:
            return Reason(f"perhaps {near} under another name")
        return Reason("saved without its head") if is_head_name(name) else Reason()

    def unexpected(self, name: str) -> Reason:
        """Why a tensor is there that nothing expects."""
        if name.endswith(_BUFFERS):
            return Reason("a buffer that newer code computes and no longer saves", "drop")
        if _SCALES.search(name):
            return Reason("belongs to a quantised weight, which the target does not have")
        if _AVERAGED.search(name):
            return Reason("an averaged copy (EMA, SWA) of another tensor", "drop")
        if "lora_" in name:
            return Reason("a LoRA adapter's tensor, not merged")
        for whole, parts in _FUSED:
            if any(_swap(name, part, whole) & self.lacking for part in parts):
                return Reason(f"the target has {', '.join(parts)} fused into {whole}")
            if _swap(name, whole, parts[0]) & self.lacking:
                return Reason(f"{', '.join(parts)} are fused into {whole}; the target has them apart")
        if spelt := _spelt(name, self.lacking):
            return Reason(spelt)
        if _deeper(name, self.wanted):
            return Reason(MORE)
        near = self._near(name, (other for other in self.lacking if self._same_shape(name, other)))
        return Reason(f"perhaps {near} under another name") if near else Reason()

    def mismatch(self, item: Mismatch) -> Reason:
        """Why a tensor is of another dtype or shape."""
        tensor = self.found.tensors[item.name]
        if item.what == "dtype":
            if item.found in _QUANTIZED:
                scaled = _stem(item.name) in self.scaled
                return Reason("quantised" if scaled else "quantised, and its scales are missing")
            castable = item.expected in _CASTS and item.found in _CASTS
            return Reason(
                "saved in another precision" if tensor.dtype.kind == "float" else "",
                f"dtype:{item.expected}" if castable else "",
            )
        return _shape(item.name, self._expected(item.name), tensor.shape)

    def is_head(self, item: Mismatch) -> bool:
        """Whether the tensor belongs to the outputs of a model, and only how many there are differs."""
        shape, expected = self.found.tensors[item.name].shape, self._expected(item.name)
        differs = item.what == "shape" and len(expected) == len(shape) > 0
        return differs and expected[1:] == shape[1:] and is_head_name(item.name)

    def _expected(self, name: str) -> tuple[int | None, ...]:
        return concrete(self.target.tensors[name], self.found.dimensions) or ()

    def _same_shape(self, there: str, wanted: str) -> bool:
        return self._expected(wanted) == self.found.tensors[there].shape

    def _near(self, name: str, names: Iterable[str]) -> str | None:
        if len(self.lacking) > _FEW or len(self.extra) > _FEW:
            return None
        from difflib import get_close_matches

        near = get_close_matches(name, sorted(names), 1, 0.8)
        return near[0] if near else None


def is_head_name(name: str) -> bool:
    """Whether the name alone says that a tensor belongs to the outputs of a model."""
    return _HEAD.search(name) is not None and ("lm_head" in name or not _EMBEDDING.search(name))


def _shape(name: str, expected: tuple[int | None, ...], shape: tuple[int, ...]) -> Reason:
    differing = [axis for axis, (e, f) in enumerate(zip(expected, shape, strict=False)) if e not in (None, f)]
    if len(expected) == len(shape) == 2 and shape[::-1] == expected:
        return Reason("a transposed linear layer (Conv1D, or another framework's)", "transpose")
    if len(expected) != len(shape):
        if [size for size in expected if size != 1] == [size for size in shape if size != 1]:
            return Reason("the same numbers with dimensions of 1 added or left out")
        return Reason("another kind of layer")
    if len(shape) > 2 and len(differing) > 1 and sorted(shape) == sorted(size or 0 for size in expected):
        return Reason("the same numbers with dimensions in another order (another framework's convolution)")
    if _POSITION.search(name) and len(differing) == 1:
        return Reason("position embeddings of another length or image size")
    if differing == [0]:
        if _EMBEDDING.search(name):
            return Reason(f"a vocabulary of {shape[0]} instead of {expected[0]}")
        if is_head_name(name):
            return Reason(f"{shape[0]} outputs instead of {expected[0]}: another number of classes")
    if differing == [1] and len(shape) == 4:
        return Reason(f"{shape[1]} input channels instead of {expected[1]}")
    return Reason("a layer of another width")


def _stem(name: str) -> str:
    """What a weight and its scales have in common."""
    stem = name.rpartition(".")[0]
    return stem.removesuffix(".weight")


def _heads(names: Iterable[str]) -> set[str]:
    """Every dotted prefix of the names."""
    found: set[str] = set()
    for name in names:
        end = name.rfind(".")
        while end > 0 and name[:end] not in found:
            found.add(name[:end])
            end = name.rfind(".", 0, end)
    return found


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


def _spelt(name: str, others: set[str]) -> str:
    """What is said where another spelling of the name's end is among the others; "" where none is."""
    for one, other, said in _SPELLINGS:
        for end, instead in ((one, other), (other, one)):
            stem = name.removesuffix("." + end)
            if stem != name and f"{stem}.{instead}" in others:
                return said
    return ""


def _deeper(name: str, others: set[str]) -> bool:
    """Whether a numbered layer of the name is beyond those of the others, which have what comes before."""
    segments = name.split(".")
    for at, segment in enumerate(segments[:-1]):
        if segment.isascii() and segment.isdigit() and int(segment[:9]) > 0:
            lead = ".".join(segments[:at])
            if ".".join(segments[: at + 1]) not in others:
                dot = "." if lead else ""
                return f"{lead}{dot}0" in others
    return False


def same_shapes(found: Fit, target: Target) -> bool:
    """Whether what is unexpected has the shapes of what is missing: the same model under other names."""
    there: Counter[tuple[int | None, ...]] = Counter(found.tensors[name].shape for name in found.unexpected)
    wanted = Counter(concrete(target.tensors[name], found.dimensions) or () for name in found.missing)
    common = sum((there & wanted).values())
    return bool(found.missing) and common >= 0.95 * max(len(found.missing), len(found.unexpected))
