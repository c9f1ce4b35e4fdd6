"""What no loader runs anything of: text, pictures and sound, tokenizers. All else that has no known kind is unread."""

import re

from ckptkit.format.pytorch.source import Source
from ckptkit.format.sniff import is_safetensors, protobuf_fields
from ckptkit.verbs.scan.parts import Block, head

_LOOKED_AT = 64 << 10
_CONTROL = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_MEDIA = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....(?:WEBP|WAVE|AVI )|%PDF-|OggS|fLaC|ID3|\xff[\xf2\xf3\xfb]"
    rb"|....ftyp|\x1aE\xdf\xa3|wOF[F2]|OTTO|\x00\x01\x00\x00\x00|II\*\x00|MM\x00\*",
    re.DOTALL,
)
_SENTENCEPIECE = (".model", ".spm", ".bpe", ".vocab")


def is_text(source: Source) -> bool:
    """Whether it begins as UTF-8 without control characters."""
    begin = head(source, _LOOKED_AT)
    try:
        text = begin.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or source.size <= _LOOKED_AT:
            return False
        text = begin[: error.start].decode("utf-8")
    return _CONTROL.search(text) is None


def is_harmless(source: Source, name: str) -> bool:
    """Whether a file of that name may be passed over."""
    begin = head(source, 16)
    if not begin or _MEDIA.match(begin) or is_safetensors(Block(source)):
        return True
    return _is_sentencepiece(source, name) or is_text(source)


def _is_sentencepiece(source: Source, name: str) -> bool:
    """A list of pieces: field 1, over and over. By its name too, because other readers of protobuf pass over it."""
    if not name.lower().endswith(_SENTENCEPIECE):
        return False
    fields = list(protobuf_fields(Block(source)))
    return bool(fields) and all((field.number, field.wire) == (1, 2) for field in fields[:60])
