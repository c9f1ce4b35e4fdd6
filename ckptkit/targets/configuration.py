"""What a project settles for `check`: `.ckptkit.toml`, or `[tool.ckptkit]` of a pyproject.toml, in the working folder.

ignore = ["optimizer-shipped"]                    # codes of findings; shell patterns
severity = {names-wrapped = "error"}

[contracts]                                       # paths → contract; the first that matches counts
"weights/*.safetensors" = "contracts/detector.ckpt.yaml"

[paths."weights/old/*"]                           # for these paths, beside what holds for all
ignore = ["zip-*"]
allow-missing = ["*.position_ids"]
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, NoReturn, get_args

from ckptkit.core.codes import CODES
from ckptkit.core.errors import CkptError
from ckptkit.core.findings import Severity

CONFIGURATION = (".ckptkit.toml", "pyproject.toml")
_SIZE = 1 << 20  # bytes; nobody writes more
_LISTS = ("select", "ignore", "allow-missing", "allow-unexpected", "allow-mismatch")


@dataclass(frozen=True, slots=True)
class Settings:
    """What counts for a path.

    Attributes:
        select: shell patterns of the codes that are told; all if empty.
        ignore: shell patterns of codes that are not.
        severity: code → how bad it is here.
        missing, unexpected, mismatch: shell patterns of names whose absence, presence or other dtype or shape is fine.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    severity: Mapping[str, Severity] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatch: tuple[str, ...] = ()

    def __add__(self, other: "Settings") -> "Settings":
        return Settings(
            self.select + other.select,
            self.ignore + other.ignore,
            {**self.severity, **other.severity},
            self.missing + other.missing,
            self.unexpected + other.unexpected,
            self.mismatch + other.mismatch,
        )


@dataclass(frozen=True, slots=True)
class Configuration:
    """A project's settings; `contracts` and `paths` are by shell patterns of paths."""

    path: str = ""
    contracts: Mapping[str, str] = field(default_factory=dict)
    everywhere: Settings = field(default_factory=Settings)
    paths: Mapping[str, Settings] = field(default_factory=dict)

    @classmethod
    def load(cls) -> "Configuration":
        """That of the working folder; empty if there is none. Raises CkptError `configuration-invalid`, `io-error`."""
        for name in CONFIGURATION:
            found = _table(name)
            if found:
                return _Reader(name).configuration(found)
        return cls()

    def settings(self, path: str) -> Settings:
        """What counts for a path: what holds everywhere, then each pattern that it matches."""
        found = self.everywhere
        posix = PurePath(os.path.normpath(path)).as_posix()
        for pattern, more in self.paths.items():
            if fnmatchcase(posix, pattern):
                found += more
        return found


def codes(patterns: Sequence[str], where: str | None) -> tuple[str, ...]:
    """The patterns, each of which must match a code there is. Raises CkptError `configuration-invalid`."""
    for pattern in patterns:
        if not any(fnmatchcase(code, pattern) for code in CODES):
            raise CkptError(
                "configuration-invalid", f"no finding has the code {pattern!r}", where, meant(pattern, CODES)
            )
    return tuple(patterns)


def meant(word: str, words: Mapping[str, object] | Sequence[str]) -> str | None:
    """What was probably meant, as a hint."""
    from difflib import get_close_matches

    near = get_close_matches(word, words, 3, 0.6)
    return f"meant: {', '.join(near)}" if near else None


def _table(name: str) -> dict[str, Any]:
    import tomllib

    from ckptkit.core.files import File

    if not os.path.isfile(name):
        return {}
    file = File.at(name)
    if file.size > _SIZE:
        raise CkptError("configuration-invalid", f"a configuration of {file.size:,} bytes", name)
    with file.open() as reader:
        data = reader.read(0, file.size)
    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CkptError("configuration-invalid", f"this is no TOML: {error}", name) from None
    if name == "pyproject.toml":
        tool = found.get("tool")
        mine = tool.get("ckptkit") if isinstance(tool, dict) else None
        return mine if isinstance(mine, dict) else {}
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """From TOML to settings; whatever is not understood is an error."""

    name: str

    def configuration(self, table: dict[str, Any]) -> Configuration:
        contracts, paths = (self._dict(table, key) for key in ("contracts", "paths"))
        for pattern, contract in contracts.items():
            if not isinstance(contract, str):
                self._fail(f"the contract of {pattern!r} is a path")
        rest = {key: value for key, value in table.items() if key not in ("contracts", "paths")}
        return Configuration(
            self.name,
            contracts,
            self._settings(rest, "", ("contracts", "paths")),
            {
                pattern: self._settings(self._dict(paths, pattern), f"paths.{pattern!r}: ")
                for pattern in paths
            },
        )

    def _settings(self, table: dict[str, Any], where: str, others: tuple[str, ...] = ()) -> Settings:
        for key in table:
            if key not in (*_LISTS, "severity"):
                self._fail(f"{where}there is no setting {key!r}", meant(key, (*_LISTS, "severity", *others)))
        lists = {key: self._texts(table, key, where) for key in _LISTS}
        select, ignore = (codes(lists[key], self.name) for key in ("select", "ignore"))
        severity = self._dict(table, "severity")
        for code, level in severity.items():
            codes([code], self.name)
            if level not in get_args(Severity):
                self._fail(f"{where}the severity of {code} is one of {', '.join(get_args(Severity))}")
        return Settings(select, ignore, severity, *(lists[key] for key in _LISTS[2:]))

    def _texts(self, table: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
        found = table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            self._fail(f"{where}{key} is a list of texts")
        return tuple(found)

    def _dict(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        found = table.get(key, {})
        if not isinstance(found, dict):
            self._fail(f"{key} is a table")
        return found

    def _fail(self, message: str, hint: str | None = None) -> NoReturn:
        raise CkptError("configuration-invalid", message, self.name, hint)
