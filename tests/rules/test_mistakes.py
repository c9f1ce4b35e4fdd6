"""Mistakes that people make in rule files: what is said, of which line, and what to write instead."""

import re
from typing import NamedTuple

import pytest

from ckptkit.core.errors import CkptError
from ckptkit.rules.ruleset import Rules
from tests.rules.support import names

HEAD = "ckptkit-rules: 1\n"


class Mistake(NamedTuple):
    text: str  # after the first line, unless it has its own
    line: int
    says: str
    hint: str


def rule(text: str, says: str, hint: str) -> Mistake:
    """A mistake in the one rule of a file, which stands in its third line."""
    return Mistake(f"rules:\n- {text}", 3, says, hint)


def op(text: str, says: str, hint: str) -> Mistake:
    return rule(f"{{from: a, to: b, ops: [{text}]}}", says, hint)


MISTAKES = {
    # words
    "operation": op("transpoze", "no 'transpoze'", "transpose"),
    "operation with arguments": op("{hads: {dim: 0, view: [2, -1], order: [1, 0]}}", "no 'hads'", "heads"),
    "argument": op("{heads: {dim: 0, veiw: [2, -1], order: [1, 0]}}", "no 'veiw'", "view"),
    "argument missing": op("reshape", "needs 'to'", "from?"),
    "key": rule("{from: a, tp: b}", "no 'tp'", "to"),
    "key of another rule": rule("{drop: a, to: b}", "no 'to'", "same_as"),
    "key of the file": Mistake("ruels:\n- {from: a, to: b}", 2, "no 'ruels'", "rules"),
    "rename": rule("{rename: a, to: b}", "a rule begins with", "{from: NAME, to: NAME}"),
    "delete": rule("{delete: a}", "a rule begins with", "{drop: NAME}"),
    "copy": rule("{copy: a, to: b}", "a rule begins with", "to: [NAME, NAME]"),
    "operation as a rule": rule("{transpose: a}", "a rule begins with", "ops: [transpose]"),
    "no target": rule("{from: a}", "has a to", "keep: NAME"),
    "yes": rule("{from: a, to: b, optional: yes}", "'yes' is neither", "small letters"),
    "True": rule("{from: a, to: b, optional: True}", "'True' is neither", "small letters"),
    "dtype": op("{cast: fp16}", "'fp16'", "float16"),
    "dtype of torch": op("{cast: torch.bfloat16}", "'torch.bfloat16'", "bfloat16"),
    "combination": rule("{from: [a, b], to: c, combine: {with: avg}}", "no 'avg'", "mean"),
    "no shape": rule("{fill: a}", "has a shape", "like: NAME"),
    # holes
    "not closed": rule('{from: "a.{i.w", to: b}', "not closed", "{{"),
    "not opened": rule('{from: "a.i}.w", to: b}', "not opened", "}}"),
    "not quoted": rule("{from: a.{i}.w, to: b.{i}.w}", "no YAML", 'quoted: "layers.{i}.weight"'),
    "not quoted at the beginning": rule("{from: {i}.w, to: b}", "no YAML", "quoted"),
    "not quoted in a block": rule("from: {i}.w\n  to: w.{i}", "no YAML", "quoted"),
    "not quoted and taken for a mapping": rule("{drop: {rest}}", "a text is expected", 'quoted: "{i}.weight"'),
    "a source taken for a mapping": rule("{from: {rest}, to: b}", "a name is expected", "quoted"),
    "unknown": rule('{from: "a.{i}.w", to: "b.{j}.w"}', "the hole 'j'", "let: {j: …}"),
    "unknown in arithmetic": rule('{from: "a.{i}.w", to: "b.{n-1-i}.w"}', "the hole 'n'", "let"),
    "unknown in an operation": op("{heads: {dim: 0, view: [H, -1], order: [1, 0]}}", "'H' a value", "let"),
    "unknown in a guard": rule("{from: a, to: b, when: heads > 1}", "'heads' a value, in heads > 1", "let"),
    "nearly known": Mistake("let: {heads: 4}\nrules:\n- {fill: a, shape: [head]}", 4, "'head' a value", "heads"),
    "unknown under let": Mistake("let: {n: 2*m}\nrules: []", 2, "'m' a value, in 2*m", "let"),
    "empty": rule('{from: "a.{}.w", to: "b.{}.w"}', "a hole without a name", "{i} number"),
    "formatted": rule('{from: "a.{i:d}.w", to: "b.{j}.w"}', "'j'", "let"),
    "texts paired by colons": rule('{from: "a.{x:p|q}", to: "b.{x|p:u,q:v}"}', "by =, not by :", "x|w1="),
    "a text forgotten": rule('{from: "a.{x:p|q|r}", to: "b.{x|p=u,q=v}"}', "nothing for 'r'", "r=…"),
    "a text too many": rule('{from: "a.{x:p|q}", to: "b.{x|p=u,q=v,s=w}"}', "never 's'", "p, q"),
    # expressions
    "python": rule('{from: a, to: b, when: "a in state_dict"}', "'in' is not expected", "present(NAME)"),
    "one equals sign": rule('{from: a, to: b, when: "dim(a, 0) = 4"}', "'= 4'", "=="),
    "and of C": rule('{from: a, to: b, when: "present(a) && present(b)"}', "&&", "and"),
    "division": rule('{from: "a.{i}", to: "b.{i/2}"}', "'/2'", "//"),
    "sizes in one text": op("{reshape: 2x3}", "'2x3'", "list"),
    "dimension by a word": op("{flip: last}", "'last' a value", "let"),
    "comma not quoted": Mistake("let: {D: dim(a, 0)}\nrules: []", 2, "not closed", "a comma are quoted"),
    "name with a hyphen": Mistake("let: {n-heads: 4}\nrules: []", 2, "'n-heads' cannot be a name", "letters"),
    # several tensors
    "no join": rule("{from: [a, c], to: b}", "several sources", ""),
    "one source": rule("{from: a, to: b, concat: {dim: 0}}", "concat needs several sources", "over"),
    "one target": rule("{from: a, to: b, split: {dim: 0}}", "split needs several targets", "over"),
    "sizes of a join": rule("{from: [a, c], to: b, concat: {dim: 0, sizes: [1, 2, 3]}}", "3 sizes for 2", ""),
    "sizes of a split": rule("{from: a, to: [b, c], split: {dim: 0, sizes: [1, 2, 3]}}", "3 sizes for 2", ""),
    "no such hole": rule('{from: a, to: "b.{x:q|k}", split: {over: y, dim: 0}}', "no hole 'y'", "x"),
    "two operations in one": op("{add: 1, multiply: 2}", "one key", "[{add: 1}, {multiply: 2}]"),
    # YAML
    "tab": Mistake("rules:\n\t- {from: a, to: b}", 3, "no YAML", "not with tabs"),
    "tab within a rule": Mistake("rules:\n- from: a\n\tto: b", 4, "no YAML", "not with tabs"),
    "too far right": Mistake("rules:\n- from: a\n   to: b", 4, "no YAML", "same column"),
    "too far left": Mistake("rules:\n  - from: a\n  to: b", 4, "no YAML", "same column"),
    "twice in a rule": rule("{from: a, to: b, to: c}", "'to' stands twice", "a list of both"),
    "twice in a file": Mistake("rules: []\nrules: []", 3, "'rules' stands twice", "one of them"),
    "no colon": rule("{from a, to: b}", "a rule begins with", "{from: NAME, to: NAME}"),
    "no list": Mistake("rules: {from: a, to: b}", 2, "a list of rules", "-"),
    "arrow": rule("a -> b", "a rule is a mapping", "{from: NAME, to: NAME}"),
    "nothing": rule("", "a rule is a mapping", "{from: NAME, to: NAME}"),
    "at sign": rule("{from: @a, to: b}", "no YAML", "begin with @"),
    "star": rule("*x", "*x", "quoted"),
    "colon in a name": rule("{from: a: b, to: c}", "no YAML", "are quoted"),
    "hash in a name": rule("{from: a #1, to: b}", "no YAML", "are quoted"),
    "another version": Mistake("ckptkit-rules: 2\nrules: []", 1, "no rule file of version 1", "ckptkit-rules: 1"),
    "no version": Mistake("keep_others: true\nrules:\n- {from: a, to: b}", 1, "version 1", "ckptkit-rules: 1"),
    "no rule file": Mistake("[]", 1, "no rule file", "ckptkit-rules: 1"),
}  # fmt: skip
OWN_HEAD = {"another version", "no version", "no rule file"}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_line_and_what_to_write(name: str) -> None:
    text, line, says, hint = MISTAKES[name]
    with pytest.raises(CkptError) as caught:
        Rules.parse(text if name in OWN_HEAD else HEAD + text, "r.yaml")
    error = caught.value
    assert error.code in ("rule-invalid", "dtype-unknown")
    assert says in error.message
    assert error.where == f"r.yaml:{line}"
    assert hint in (error.hint or "")


@pytest.mark.parametrize("pattern", [r"a\\.\\d+\\.w", "a.*.w", "a.[0-9]+.w"])
def test_patterns_of_other_languages_are_told_apart_from_names(pattern: str) -> None:
    (found,) = (
        finding
        for finding in Rules.of([{"from": pattern, "to": "b"}], keep_others=True).check(names("a.0.w"))
        if finding.code == "rule-unmatched"
    )
    assert "{i} is a number" in found.hint


def test_what_yaml_might_take_for_something_else_is_a_name() -> None:
    words = ["no", "on", "off", "y", "null", "~", "1.10", "0x10", "1e3", "12:30", "2024-01-01", "007", "true"]
    listed = "".join(f"- {{from: {word}, to: new.{word}}}\n" for word in words)
    made = Rules.parse(f"{HEAD}rules:\n{listed}").apply(names(*words)).graph
    assert list(made) == [f"new.{word}" for word in words]


def test_holes_of_every_kind_are_understood_in_messages() -> None:
    """A message shows the rule as it is written."""
    rules = Rules.parse(HEAD + 'rules:\n- {from: "a.{i:02}.{x:p|q}", to: "b.{i}.{x|p=u,q=v}"}\n', "r.yaml")
    (found,) = (f for f in rules.check(names("a.1.p")) if f.code == "rule-unmatched")
    assert re.search(re.escape("a.{i:02}.{x:p|q} → b.{i}.{x|p=u,q=v}"), found.message)
    assert found.where == "r.yaml:3"
