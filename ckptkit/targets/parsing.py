"""Contracts from their text: every mistake is located, and a key or word that is nearly right is suggested."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.rules.nodes import SIZE, Node
from ckptkit.rules.nodes import load as load_nodes
from ckptkit.targets.contract import VERSION, Contract, Entry, expand_ties, size_of
from ckptkit.targets.pattern import WORD, expand, numbers
from ckptkit.targets.target import FLOATS, Dim, Policies, Size, Spec, Stored

__all__ = ["SIZE", "WIDER", "Parser", "parse"]

T = TypeVar("T")

_HEAD = "ckptkit-contract"
_KEYS = (
    _HEAD, "checkpoint", "ranges", "dimensions", "tensors", "optional", "ties", "metadata", "forbidden",
    "unlisted", "policies", "digest", "files",
)  # fmt: skip
WIDER: Mapping[str, tuple[str, ...]] = {"any": (), "float": FLOATS}  # words for several dtypes
_POLICIES = ("dtypes", "max_size", "values", "globals")
_SPEC = re.compile(r"([^\s\[\]]+)\s*(?:\[([^\[\]]*)\])?")
_MULTIPLE = re.compile(r"([1-9][0-9]{0,8})\s*\*\s*([A-Za-z_]\w*)", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}")


def parse(text: str, path: str) -> Contract:
    """Raises CkptError `contract-invalid` at the first thing that is not understood, `over-budget`."""
    try:
        root = load_nodes(text, path)
    except CkptError as error:
        if error.code != "rule-invalid":
            raise
        raise CkptError("contract-invalid", error.message, error.where, error.hint) from None
    contract = Parser(path).contract(root)
    comment = "".join(re.findall(r"\A(?:[ \t]*(?:#[^\n]*)?\n)+", text))
    return contract if not comment.strip() else _with_comment(contract, comment)


def _with_comment(contract: Contract, comment: str) -> Contract:
    from dataclasses import replace

    return replace(contract, comment=comment.strip("\n") + "\n")


@dataclass(slots=True)
class Parser:
    """Reads the nodes of a file; each mistake is an error with its line."""

    path: str

    def fail(self, node: Node, message: str, hint: str | None = None) -> NoReturn:
        raise CkptError("contract-invalid", message, self.at(node), hint)

    def at(self, node: Node) -> str:
        return f"{self.path}:{node.line}" if node.line else self.path

    def located(self, node: Node, make: Callable[..., T], *args: Any) -> T:
        """What `make` gives; its errors get the node's place."""
        try:
            return make(*args)
        except CkptError as error:
            raise CkptError(error.code, error.message, self.at(node), error.hint) from None

    def text(self, node: Node) -> str:
        if not isinstance(node.value, str):
            self.fail(node, "a text is expected here")
        return node.value

    def texts(self, node: Node) -> tuple[str, ...]:
        return tuple(self.text(item) for item in self.items(node))

    def items(self, node: Node) -> tuple[Node, ...]:
        if not isinstance(node.value, tuple):
            self.fail(node, "a list is expected here", "such as [a, b]")
        return node.value

    def mapping(self, node: Node, known: Iterable[str] = ()) -> dict[str, Node]:
        if not isinstance(node.value, dict):
            self.fail(node, "a mapping is expected here, key: value")
        known = tuple(known)
        for key, value in node.value.items():
            if known and key not in known:
                self.unknown(value, "key", key, known)
        return node.value

    def unknown(self, node: Node, what: str, word: str, known: Iterable[str]) -> NoReturn:
        from difflib import get_close_matches

        known = tuple(known)
        near = get_close_matches(word, known, 1, 0.5)
        hint = f"meant: {near[0]}" if near else f"known: {', '.join(known)}" if known else None
        self.fail(node, f"there is no {what} {word!r}", hint)

    def contract(self, root: Node) -> Contract:
        if not isinstance(root.value, dict) or _HEAD not in root.value:
            self.fail(root, "this is no contract", f"its first line is {_HEAD}: {VERSION}")
        top = self.mapping(root, _KEYS)
        if top[_HEAD].value != VERSION:
            message = f"a contract of version {self.text(top[_HEAD])}"
            self.fail(top[_HEAD], message, f"this ckptkit knows version {VERSION}")
        nothing = Node({})
        ranges = {}
        for name, node in self.mapping(top.get("ranges", nothing)).items():
            self.word(node, name)
            ranges[name] = self.text(node)
            self.located(node, numbers, ranges[name])
        dimensions = {
            self.word(node, name): self.dimension(node)
            for name, node in self.mapping(top.get("dimensions", nothing)).items()
        }
        counted = {name: numbers(written) for name, written in ranges.items()}
        if "tensors" not in top:
            self.fail(root, "a contract has tensors")
        taken: dict[str, int] = {}
        entries = []
        for key in ("tensors", "optional"):
            for pattern, node in self.mapping(top.get(key, nothing)).items():
                entry = Entry(pattern, self.spec(node, dimensions, optional=key == "optional"))
                for name in self.located(node, expand, pattern, counted):
                    if name in taken:
                        self.fail(node, f"{name!r} is expected in line {taken[name]}, too")
                    taken[name] = node.line
                entries.append(entry)
        return Contract(
            path=self.path,
            checkpoint=self.text(top["checkpoint"]) if "checkpoint" in top else "",
            ranges=ranges,
            dimensions=dimensions,
            entries=tuple(entries),
            ties=tuple(self.tie(node, counted, taken) for node in self.items(top.get("ties", Node(())))),
            metadata={
                key: None if self.text(node) == "any" else self.text(node)
                for key, node in self.mapping(top.get("metadata", nothing)).items()
            },
            forbidden=self.texts(top.get("forbidden", Node(()))),
            unlisted="unlisted" in top and self.choice(top["unlisted"], ("refuse", "allow")) == "allow",
            policies=self.policies(self.mapping(top.get("policies", nothing), _POLICIES)),
            digest=self.digest(top["digest"]) if "digest" in top else "",
            files={name: self.stored(node) for name, node in self.mapping(top.get("files", nothing)).items()},
        )

    def word(self, node: Node, name: str) -> str:
        if not WORD.fullmatch(name):
            self.fail(node, f"{name!r} is no name; letters, digits and _ make one")
        return name

    def choice(self, node: Node, known: tuple[str, ...]) -> str:
        if self.text(node) not in known:
            self.unknown(node, "choice", self.text(node), known)
        return self.text(node)

    def dimension(self, node: Node) -> int | None:
        text = self.text(node)
        if text == "any":
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            self.fail(node, f"{text!r} is no size", "a number, or any")
        return int(text)

    def spec(self, node: Node, dimensions: Mapping[str, object], *, optional: bool) -> Spec:
        text = self.text(node)
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            self.fail(node, f"{text!r} is no dtype and shape", "such as float32 [vocab, d]")
        dtypes = WIDER[match[1]] if match[1] in WIDER else tuple(match[1].split("|"))
        for name in dtypes:
            self.dtype(node, name)
        sizes = match[2]
        if sizes is None:
            return Spec(dtypes, None, optional)
        shape = (
            tuple(self.size(node, part.strip(), dimensions) for part in sizes.split(","))
            if sizes.strip()
            else ()
        )
        return Spec(dtypes, shape, optional)

    def dtype(self, node: Node, name: str) -> str:
        if name not in DTYPES:
            self.unknown(node, "dtype", name, DTYPES)
        return name

    def size(self, node: Node, text: str, dimensions: Mapping[str, object]) -> Size:
        if text == "?":
            return None
        if text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
        match = _MULTIPLE.fullmatch(text)
        name, factor = (match[2], int(match[1])) if match else (text, 1)
        if name not in dimensions:
            self.unknown(node, "dimension", name, dimensions)
        return Dim(name, factor)

    def tie(
        self, node: Node, ranges: Mapping[str, tuple[str, ...]], known: Mapping[str, int]
    ) -> tuple[str, ...]:
        names = self.texts(node)
        if len(names) < 2:
            self.fail(node, "a tie has at least two names")
        for group in self.located(node, expand_ties, names, ranges):
            for name in group:
                if name not in known:
                    self.unknown(node, "tensor", name, known)
        return names

    def policies(self, given: dict[str, Node]) -> Policies:
        max_bytes = None
        if "max_size" in given:
            max_bytes = size_of(self.text(given["max_size"]))
            if max_bytes is None:
                self.fail(given["max_size"], "this is no size", "such as 500MB or 16GB")
        dtypes = given.get("dtypes", Node(()))
        return Policies(
            tuple(self.dtype(node, self.text(node)) for node in self.items(dtypes)),
            max_bytes,
            "values" in given and self.choice(given["values"], ("finite", "any")) == "finite",
            tuple(map(self.text, self.items(given["globals"]))) if "globals" in given else None,
        )

    def digest(self, node: Node) -> str:
        if not _HEX.fullmatch(self.text(node)):
            self.fail(node, "this is no digest of 64 hexadecimal digits")
        return self.text(node)

    def stored(self, node: Node) -> Stored:
        given = self.mapping(node, ("sha256", "size"))
        if len(given) < 2:
            self.fail(node, "a file has sha256 and size")
        size = self.dimension(given["size"])
        if size is None:
            self.fail(given["size"], "the size is a number of bytes")
        return Stored(self.digest(given["sha256"]), size)
