"""Parts of files: a range of one, or bytes that were unpacked from it within the allowance."""

from ckptkit.format.pytorch.source import Held, Source, Span
from ckptkit.verbs.scan.inflating import Inflation, Make
from ckptkit.verbs.scan.ledger import Ledger

_SEARCHED = 1 << 20  # bytes behind what is compressed that are looked at


def part(source: Source, offset: int, size: int) -> Source:
    """The range of a source, cut where the source ends."""
    offset = min(max(offset, 0), source.size)
    size = max(0, min(size, source.size - offset))
    if isinstance(source, Span):
        return Span(source.reader, source.base + offset, size)
    return Held(source.read(offset, size), source.where, (source.where, offset))


def head(source: Source, size: int = 4096) -> bytes:
    return source.read(0, min(size, source.size))


class Block:
    """A source as the sniffers want it; what needs a file of its own is not to be asked."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.size = source.size
        self.data = head(source)

    def at(self, offset: int, size: int) -> bytes:
        return self.source.read(offset, max(0, min(size, self.size - offset)))


def unpack(source: Source, make: Make, ledger: Ledger, where: str) -> list[Source]:
    """What a compressed source holds, as far as it can be had, up to damage, up to the allowance; and what follows."""
    packed = Inflation(source, make)
    pieces: list[bytes] = []
    if ledger.unpacked > 0:
        for piece in packed:
            pieces.append(piece[: ledger.unpacked])
            ledger.unpacked -= len(piece)
            if ledger.unpacked <= 0:
                break
    if packed.problem is not None:
        ledger.add("unread", packed.problem[0], where, packed.problem[1])
    elif ledger.unpacked <= 0:
        ledger.add("unread", "over-budget", where, "it unpacks to more than a scan unpacks")
    found: list[Source] = [Held(b"".join(pieces), where, where)]
    if packed.problem is None and ledger.unpacked > 0:
        rest = part(source, packed.end, source.size - packed.end)
        if head(rest, _SEARCHED).strip(b"\0"):
            text = f"{rest.size} bytes follow the compressed ones, which loaders pass over"
            ledger.add("trick", "bytes-unclaimed", where, text)
            found.append(rest)
    return found
