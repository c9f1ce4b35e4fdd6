"""Large stored tensors told apart by their first and last elements, so that their bytes are read once, to be proved.

No order of axes and no reshaping moves the first or the last element. A pair of them that only one tensor of a size
and dtype has, therefore, leaves one tensor that another can be: only if the bytes bear that out does it count. What is
small, of one value throughout perhaps, or shares its ends with others, is left to fingerprints.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from ckptkit.core.files import File
from ckptkit.core.tensor import Tensor
from ckptkit.match.finder.expressions import Source
from ckptkit.match.finder.layout import equal
from ckptkit.match.finder.result import Proposal
from ckptkit.match.finder.whole import proposal, reordered
from ckptkit.match.finder.workers import Workers

LEAST = 1 << 16  # bytes: smaller tensors are fingerprinted faster than read twice

Key = tuple[str, int, bytes, bytes]


def by_ends(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], near: Collection[str], workers: Workers
) -> Iterator[Proposal]:
    """Targets that are a source, as it is or with its axes in another order, which nothing else can be.

    `near` are the sources that a target may be though it has a name that both sides have.
    """
    alike: defaultdict[Key, list[str]] = defaultdict(list)
    sizes = {(t.dtype.name, t.size) for t in targets.values()}
    sizes -= {
        (t.dtype.name, t.size) for t in sources.values() if t.file is None
    }  # these have no ends to look at
    for name, key in _keys((n, t) for n, t in sources.items() if (t.dtype.name, t.size) in sizes):
        alike[key].append(name)

    def look(item: tuple[str, Key]) -> Proposal | None:
        name, key = item
        (other,) = alike[key]
        if name in sources and other not in near:
            return None
        target, source = targets[name], sources[other]
        if equal(source, target):
            return proposal(name, target, (other,), sources, Source)
        return reordered(name, target, (other,), sources, lambda tensor: tensor)

    wanted = [(name, key) for name, key in _keys(targets.items()) if len(alike.get(key, ())) == 1]
    yield from (found for found in workers.map(look, wanted) if found is not None)


def _keys(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Key]]:
    """What tells large stored tensors apart; nothing for those whose ends are the same."""
    by_file: defaultdict[File, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in tensors:
        if tensor.file is not None and tensor.dtype.kind == "float" and tensor.nbytes >= LEAST:
            by_file[tensor.file].append((name, tensor))
    for file, some in by_file.items():
        with file.open() as reader:
            for name, tensor in some:
                width = tensor.dtype.bits // 8
                last = tensor.offset + tensor.nbytes - width
                ends = reader.read(tensor.offset, width), reader.read(last, width)
                if width and ends[0] != ends[1]:
                    yield name, (tensor.dtype.name, tensor.size, *ends)
