"""Tied tensors in string metadata: `dropped: kept`, as safetensors' `save_model` and huggingface_hub record them."""

from collections.abc import Mapping

from ckptkit.core.tensor import Tensor

# A key that every loader gives another meaning, should a tensor be called "pt".
_RESERVED = ("format",)


def restore_ties(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Add the names that `metadata` records as ties to `tensors`; returns the metadata that remains."""
    tied = [key for key, value in metadata.items() if value in tensors and reads_as_tie(key, value, tensors)]
    tensors.update({key: tensors[metadata[key]] for key in tied})
    left = dict(metadata)
    for key in tied:
        del left[key]
    return left


def reads_as_tie(key: str, value: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a metadata entry is another name (`key`) of a tensor that is there (`value`)."""
    return value in tensors and key not in tensors and key not in _RESERVED
