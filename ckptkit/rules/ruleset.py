"""Rules as a value: loaded from a file, a preset or Python data; applied, proved, reversed, written out."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptkit.core.collector import paused
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.findings import Finding
from ckptkit.core.graph import TensorGraph
from ckptkit.rules import nodes
from ckptkit.rules.language import Parsed, parse
from ckptkit.rules.outcome import Rewrite
from ckptkit.rules.rewrite import prove, rewrite
from ckptkit.rules.template import escaped

_PRESETS = os.path.join(os.path.dirname(__file__), "presets")
SUFFIXES = (".yaml", ".yml")
_NAMED = 60  # characters of rules on the command line that messages repeat


@dataclass(frozen=True, slots=True)
class Rules:
    """A rule file. Make one with `load`, `preset`, `parse` or `of`.

    `let` holds values that were given from outside; they count before what the file declares.
    """

    parsed: Parsed
    let: Mapping[str, str | int]

    @classmethod
    def load(cls, name: str | os.PathLike[str], let: Mapping[str, str | int] | None = None) -> "Rules":
        """A rule file by its path, a preset by its name, `strip:PREFIX`, `add:PREFIX`, `unwrap:SEGMENT`, or
        rules themselves: `{from: A, to: B}`, or a list of such, beside which all other tensors are kept.

        Raises CkptError `rule-invalid`, `over-budget`, `not-found`.
        """
        text = os.fspath(name)
        if text.startswith(("{", "[")):
            return _inline(text, let)
        verb, colon, prefix = text.partition(":")
        if colon and verb in ("strip", "add", "unwrap"):
            return _prefix(verb, prefix, text)
        if text.endswith(SUFFIXES) or os.sep in text:
            return cls.parse(_read(text), text, let)
        if text in presets():
            return cls.preset(text, let)
        raise CkptError("not-found", "there is no such rule file or preset", text, _known(text))

    @classmethod
    def preset(cls, name: str, let: Mapping[str, str | int] | None = None) -> "Rules":
        """A preset by its name. Raises CkptError `not-found`."""
        if name not in presets():
            raise CkptError("not-found", "there is no such preset", name, _known(name))
        return cls.parse(preset_text(name), name, let)

    @classmethod
    def parse(cls, text: str, name: str = "rules", let: Mapping[str, str | int] | None = None) -> "Rules":
        """Rules from YAML text; `name` stands in messages. Raises CkptError `rule-invalid`, `over-budget`."""
        with paused():
            return cls(parse(nodes.load(text, name), name), let or {})

    @classmethod
    def of(cls, rules: Iterable[Mapping[str, Any]], *, name: str = "rules", **top: Any) -> "Rules":
        """Rules made in Python: the same keys and values as in a file.

        >>> Rules.of([{"from": "a.{i}.w", "to": "b.{i+1}.w"}], keep_others=True)
        """
        data = {"ckptkit-rules": "1", **top, "rules": list(rules)}
        return cls(parse(nodes.of(data), name), {})

    def apply(self, graph: TensorGraph, **let: str | int) -> Rewrite:
        """The graph under the rules; nothing is read.

        Raises RulesError (a CkptError) with every problem: `rule-leftover`, `rule-unmatched`, `rule-overlap`,
        `name-collision`, `rule-incomplete`, `rule-gap`, `rule-value`, `op-shape`, `op-dtype`, ….
        """
        return rewrite(self.parsed, graph, {**self.let, **let})

    def check(self, graph: TensorGraph, target: TensorGraph | None = None, **let: str | int) -> list[Finding]:
        """Every problem that `apply` would have; with a target also names, shapes and dtypes that differ from it."""
        made, findings = self.applied(graph, **let)
        return findings if made is None or target is None else [*findings, *compare(made.graph, target)]

    def applied(self, graph: TensorGraph, **let: str | int) -> tuple[Rewrite | None, list[Finding]]:
        """What `apply` gives, None if there are problems; and every problem, and notes."""
        return prove(self.parsed, graph, {**self.let, **let})

    def reversed(self, *, approximate: bool = False, on: TensorGraph | None = None) -> "Rules":
        """The rules that undo these.

        Args:
            approximate: undo operations that can only be undone up to rounding.
            on: a graph that these apply to; the sizes of parts and shapes that they do not state are those it has.

        Raises RulesError `rule-lossy` naming the rules that cannot be undone, `rule-approximate` for those that only
        can up to rounding, and with `on` what `apply` raises.
        """
        from ckptkit.rules.reverse import backwards
        from ckptkit.rules.settle import settled

        parsed = self.parsed if on is None else settled(self.parsed, on, self.let)
        return Rules(backwards(parsed, approximate), self.let)

    def given(self, let: Mapping[str, str | int]) -> "Rules":
        """The rules with those of these values that they declare."""
        mine = {name: value for name, value in let.items() if name in self.parsed.let}
        return replace(self, let={**self.let, **mine}) if mine else self

    def text(self) -> str:
        """The rules as YAML."""
        return text(self.parsed)

    @property
    def about(self) -> str:
        return self.parsed.about

    def __len__(self) -> int:
        return len(self.parsed.rules)

    def __repr__(self) -> str:
        return f"<Rules {self.parsed.name!r}: {len(self)} rules>"


def presets() -> tuple[str, ...]:
    """Names of the rule files that come with ckptkit."""
    return tuple(sorted(name[: -len(".yaml")] for name in os.listdir(_PRESETS) if name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """The text of a preset, one of `presets()`."""
    return _read(os.path.join(_PRESETS, f"{name}.yaml"))


def compare(made: TensorGraph, target: TensorGraph) -> list[Finding]:
    """How the names, shapes and dtypes of a graph differ from those of another."""
    found = []
    wanted = [
        n for n in target if not (target.nodes and target[n].kind == "constant")
    ]  # a graph's own numbers
    for name in wanted:
        if name not in made:
            found.append(
                Finding("target-missing", "error", name, "the target has it, the rules do not make it")
            )
        elif made[name].shape != target[name].shape:
            shapes = f"{list(made[name].shape)}, the target's is {list(target[name].shape)}"
            found.append(Finding("target-shape", "error", name, f"its shape is {shapes}"))
        elif made[name].dtype is not target[name].dtype:
            dtypes = f"{made[name].dtype}, in the target {target[name].dtype}"
            found.append(Finding("target-dtype", "warning", name, f"it is {dtypes}"))
    found += [
        Finding("target-unknown", "error", name, "the rules make it, the target does not have it")
        for name in made
        if name not in target
    ]
    return found


def text(parsed: Parsed) -> str:
    """A rule file that says the same."""
    top: dict[str, Any] = {"ckptkit-rules": "1"}
    if parsed.about:
        top["about"] = parsed.about
    if parsed.let:
        top["let"] = {
            name: str(values[0]) if len(values) == 1 else [str(value) for value in values]
            for name, values in parsed.let.items()
        }
    if parsed.tables:
        top["tables"] = {name: _texts(table) for name, table in parsed.tables.items()}
    if parsed.done is not None:
        top["done"] = str(parsed.done)
    if parsed.unwrap:
        top["unwrap"] = list(parsed.unwrap)
    if parsed.keep_others:
        top["keep_others"] = "true"
    lines = [f"{key}: {nodes.dump(value)}" for key, value in top.items()]
    lines.append("rules:" if parsed.rules else "rules: []")
    lines += [f"- {nodes.dump(rule.data())}" for rule in parsed.rules]
    return "\n".join(lines) + "\n"


def _texts(table: Any) -> Any:
    if isinstance(table, dict):
        return {key: str(entry) for key, entry in table.items()}
    return [str(entry) for entry in table]


def _read(path: str) -> str:
    file = File.at(path)
    if file.size > nodes.SIZE:
        raise CkptError("over-budget", f"a rule file of {file.size} bytes", path)
    with file.open() as reader:
        raw = reader.read(0, file.size)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CkptError("rule-invalid", "a rule file is UTF-8 text", path) from None


def _inline(text: str, let: Mapping[str, str | int] | None) -> Rules:
    """Rules given as text on the command line; errors name their beginning."""
    listed = f"[{text}\n]" if text.startswith("{") else text
    name = text if len(text) <= _NAMED else f"{text[:_NAMED]}…"
    return Rules.parse(f"{{ckptkit-rules: 1, keep_others: true, rules: {listed}}}", name, let)


def _prefix(verb: str, prefix: str, text: str) -> Rules:
    if not prefix:
        raise CkptError(
            "rule-invalid",
            "a prefix or segment is missing",
            text,
            "for example --rules strip:module., --rules add:model. or --rules unwrap:_orig_mod",
        )
    if verb == "unwrap":
        return Rules.of([], name=text, keep_others=True, unwrap=[prefix])
    long, short = escaped(prefix) + "{rest:**}", "{rest:**}"
    source, target = (long, short) if verb == "strip" else (short, long)
    return Rules.of([{"from": source, "to": target}], name=text, keep_others=True)


def _known(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, presets(), 3, 0.5)
    return f"meant: {', '.join(near)}" if near else "ckptkit rules list names the presets; files end in .yaml"
