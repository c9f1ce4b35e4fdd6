"""Commands to paste."""

import os


def command(*words: str) -> str:
    """`ckptkit WORDS…`, quoted for a shell."""
    from shlex import join

    return f"ckptkit {join(words)}"


def output(path: str, *, single: bool = False) -> str:
    """Where a mended copy goes, in the working directory: for a folder a folder, unless it is to be one file."""
    stem = os.path.basename(os.path.abspath(path))
    if os.path.isdir(path):
        return f"{stem}-fitted.safetensors" if single else f"{stem}-fitted/"
    return f"{stem.partition('.')[0] or 'model'}-fitted.safetensors"
