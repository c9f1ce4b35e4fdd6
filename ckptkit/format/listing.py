"""What a folder holds, by name, sorted."""

import os

from ckptkit.core.files import io_error


def files(path: str) -> list[str]:
    """Names of the regular files, or links to them. Raises CkptError `io-error`."""
    return _names(path, folders=False)


def folders(path: str) -> list[str]:
    """Names of the folders, or links to them. Raises CkptError `io-error`."""
    return _names(path, folders=True)


def _names(path: str, *, folders: bool) -> list[str]:
    try:
        with os.scandir(path) as found:
            return sorted(e.name for e in found if (e.is_dir() if folders else e.is_file()))
    except OSError as error:
        raise io_error(error, path) from None
