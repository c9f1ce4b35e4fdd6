"""Names brought to a target's by wrappers and prefixes taken off or added. Each way is tried before it is offered."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

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
AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|shadow|averaged|teacher)(?:[._]|$)", re.IGNORECASE)


class Renaming(NamedTuple):
    """A way from the checkpoint's names to the target's.

    Attributes:
        unwrap: segments taken out of names wherever they stand.
        strip, add: prefixes then taken off and put before every name; "" for none.
        cause: for people.
        fitting: how many of the names looked at are then in the target.
    """

    unwrap: tuple[str, ...]
    strip: str
    add: str
    cause: str
    fitting: int

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of `convert` that do it."""
        return (
            *(f"unwrap:{segment}" for segment in self.unwrap),
            *((f"strip:{self.strip}",) if self.strip else ()),
            *((f"add:{self.add}",) if self.add else ()),
        )

    def new(self, name: str) -> str:
        """The name under it."""
        return self.add + _unwrapped(name, self.unwrap).removeprefix(self.strip)


def ways(names: Iterable[str], target: Target) -> list[Renaming]:
    """The ways that bring most names to the target's, averaged copies last; none if their own names are as good.

    Several bring as many, but not the same names: parts of the checkpoint that fit equally well. Of very many names
    every so-manieth is looked at.
    """
    names = list(names)
    names = names[:: max(1, len(names) // _LOOKED_AT)]
    expected = target.tensors.keys()
    adding = _prefixes(expected)
    start = most = sum(name in expected for name in names)
    best: dict[tuple[str, ...], Renaming] = {}
    for unwrap in dict.fromkeys([(), _segments(names)]):
        plain = [_unwrapped(name, unwrap) for name in names]
        for strip in _prefixes(plain):
            bare = [name.removeprefix(strip) for name in plain]
            for add in adding:
                hits = sum(add + name in expected for name in bare)
                if hits > start and hits >= most:
                    best = best if hits == most else {}
                    most = hits
                    way = Renaming(unwrap, strip, add, _said(unwrap, strip, add), hits)
                    best.setdefault(tuple(n if (n := add + b) in expected else "" for b in bare), way)
    # A few chance hits (layer1.0.weight) are no explanation.
    if most - start < max(2, len(names) // 4):
        return []
    return sorted(best.values(), key=lambda way: AVERAGED.search(way.strip) is not None)


def _segments(names: Iterable[str]) -> tuple[str, ...]:
    """What wrappers put within names, where any name has it there; it is then taken out at the start, too."""
    text = "\n".join(names)
    return tuple(inner[:-1] for inner in (*INNER, "module.") if "." + inner in text)


def _unwrapped(name: str, unwrap: tuple[str, ...]) -> str:
    return ".".join(part for part in name.split(".") if part not in unwrap) if unwrap else name


def _prefixes(names: Iterable[str]) -> list[str]:
    """ "" and the dotted prefixes that at least a quarter of the names have, shortest first."""
    names = list(names)
    counts: Counter[str] = Counter()
    for name in names:
        end = -1
        for _ in range(_DEEPEST):
            end = name.find(".", end + 1)
            if end < 0:
                break
            counts[name[: end + 1]] += 1
    common = [prefix for prefix, count in counts.items() if 4 * count >= len(names)]
    return ["", *sorted(common, key=len)[:_TRIED]]


def _said(unwrap: tuple[str, ...], strip: str, add: str) -> str:
    said = [f"names have {segment!r} within, from {_WORDS[segment + '.']}" for segment in unwrap]
    if strip:
        wrapper = next((w for w in WRAPPERS if "." + w in "." + strip), "")
        averaged = ", an averaged copy" if AVERAGED.search(strip) else ""
        by = f", from {_WORDS[wrapper]}" if wrapper else averaged
        said.append(f"names carry the prefix {strip!r}{by}")
    if add:
        said.append(f"names lack the prefix {add!r}")
    return "; ".join(said)
