"""The fenced blocks of the documentation, and how they are run. docs/contributing.md states the convention.

`python tests/house/blocks.py FILE NAME` prints the commands of the block that .ci/run runs as NAME.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Languages that are run, and those that are only shown. Any other (sh, bash, none) is an error, so that
# nothing that looks like a command escapes.
RUN = ("console", "python")
SHOWN = ("ini", "json", "mermaid", "text", "toml", "yaml")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<language>.*)$")
_MARK = re.compile(r"^<!-- (?:run by \.ci/run: (?P<ci>\w+)|exit (?P<code>\d+)) -->$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: where it starts (line of its fence, from 1), its language and its lines."""

    line: int
    language: str
    lines: tuple[str, ...]
    ci: str | None = None  # run by .ci/run under this name, and not by the tests
    code: int = 0  # exit code of its last command


@dataclass(frozen=True, slots=True)
class Command:
    """One `$ …` of a console block and the output shown under it."""

    line: int
    text: str
    output: str
    code: int = 0


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text, with the marker comment directly above each."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if not fence:
            at += 1
            continue
        start, body = at, []
        at += 1
        while at < len(lines) and lines[at].strip() != fence["fence"]:
            body.append(lines[at].removeprefix(fence["indent"]))
            at += 1
        if at == len(lines):
            raise ValueError(f"line {start + 1}: the block is not closed")
        at += 1
        mark = _MARK.match(lines[start - 1].strip()) if start else None
        yield Block(
            line=start + 1,
            language=fence["language"].strip(),
            lines=tuple(body),
            ci=mark["ci"] if mark else None,
            code=int(mark["code"] or 0) if mark else 0,
        )


def commands(block: Block) -> list[Command]:
    r"""The commands of a console block; a line ending in `\` goes on in the next, without a prompt."""
    found: list[tuple[int, list[str], list[str]]] = []
    for number, line in enumerate(block.lines, block.line + 1):
        if line.startswith("$ "):
            found.append((number, [line[2:]], []))
        elif not found:
            raise ValueError(f"line {number}: a console block starts with a `$ ` line")
        elif found[-1][1][-1].endswith("\\") and not found[-1][2]:
            found[-1][1].append(line)
        else:
            found[-1][2].append(line)
    last = len(found) - 1
    return [
        Command(number, "\n".join(text), "\n".join(output), block.code if index == last else 0)
        for index, (number, text, output) in enumerate(found)
    ]


def matches(shown: str, real: str) -> bool:
    """Whether real output is what is shown: `...` alone on a line is any lines, within a line any text.

    Blanks at the end of lines and blank lines at either end do not count.
    """
    pattern = []
    for line in _trimmed(shown):
        if line.strip() == "...":
            pattern.append(r"(?:.*\n)*?")
        else:
            pattern.append(".*?".join(map(re.escape, line.split("..."))) + r"\n")
    return re.fullmatch("".join(pattern), "".join(f"{line}\n" for line in _trimmed(real))) is not None


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()] if text.strip() else []


def main(path: str, name: str) -> None:
    """Print the commands of the block that .ci/run runs under `name`."""
    found = [block for block in blocks(Path(path).read_text("utf-8")) if block.ci == name]
    if len(found) != 1:
        sys.exit(f"{path} has {len(found)} blocks marked <!-- run by .ci/run: {name} -->, expected one")
    for command in commands(found[0]):
        print(command.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
