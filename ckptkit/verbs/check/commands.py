"""Commands to paste."""

import os


def command(*words: str) -> str:
    """`ckptkit WORDS…`, quoted for a shell."""
    from shlex import join

    return f"ckptkit {join(words)}"


def output(path: str) -> str:
    """Where a mended copy goes: beside nothing that exists by its name, in the working directory."""
    stem = os.path.basename(os.path.normpath(path))
    if os.path.isdir(path):
        return f"{stem}-fitted/"
    return f"{stem.partition('.')[0] or 'model'}-fitted.safetensors"
