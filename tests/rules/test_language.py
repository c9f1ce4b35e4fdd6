"""What a rule file may say, what it is refused for, and where the error points."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest
import yaml

from ckptkit.core.errors import CkptError
from ckptkit.rules import joins, language, model, nodes, operations, ruleset, template
from ckptkit.rules.ruleset import Rules
from tests.rules.support import code_of, names
from tests.support import ROOT

HEAD = "ckptkit-rules: 1\n"


def test_scalars_are_text() -> None:
    rules = Rules.parse(HEAD + "rules:\n- {from: no, to: 1.10}\n- {from: null, to: 0x10}\n")
    assert list(rules.apply(names("no", "null")).graph) == ["1.10", "0x10"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("rules:\n- {from: a, too: b}", 3, "'too'"),
        ("rules:\n- {from: a, to: b, ops: [{hedas: {}}]}", 3, "hedas"),
        ("rules:\n- from: a\n  to: b\n  ops: [{heads: {dim: 0, view: [1]}}]", 5, "order"),
        ('rules:\n- {from: "a.{i}", to: "b.{j}"}', 3, "'j'"),
        ('rules:\n- {from: "a.{i", to: b}', 3, "not closed"),
        ('rules:\n- {from: "a.{i}{j}", to: "b.{i}.{j}"}', 3, "touch"),
        ('rules:\n- {from: "{a:**}.{b:**}", to: "{a}.{b}"}', 3, "two holes for anything"),
        ('rules:\n- {from: "{a:*}_{b:*}", to: "{a}.{b}"}', 3, "not clear"),
        ('rules:\n- {from: "a.{x:p|q}", to: "b", concat: {over: y, dim: 0}}', 3, "'y'"),
        ('rules:\n- {from: "a.{x:*}", to: "b", concat: {over: x, dim: 0}}', 3, "order"),
        ("rules:\n- {from: [a, b], to: c}", 3, "several sources"),
        ('rules:\n- {from: "a.{i+}", to: b}', 3, "expression"),
        ("rules:\n- {from: a, to: b}\n- {from: a", 4, "YAML"),
        ("let: {n: 1}\nlet: {m: 1}\nrules: []", 3, "twice"),
        ("rules:\n- {drop: !!python/object:os.system x}", 3, "tag"),
        ("rules:\n- {what: a}", 3, "begins with"),
        ("rules:\n- {from: a, to: b, ops: [{cast: float99}]}", 3, "dtype"),
        ("rules:\n- {from: [a, b], to: c, combine: {with: median}}", 3, "median"),
        ("rules:\n- {fill: a, shape: [2], value: many}", 3, "number"),
        ("rules: []\n---\nrules: []", 3, "second document"),
    ],
)
def test_errors_say_file_and_line(text: str, line: int, says: str) -> None:
    with pytest.raises(CkptError) as caught:
        Rules.parse(HEAD + text, "r.yaml")
    assert caught.value.code in ("rule-invalid", "dtype-unknown")
    assert says in caught.value.message
    where = re.fullmatch(r"r\.yaml:(\d+)", caught.value.where or "")
    assert where is not None
    assert int(where[1]) in (line, line + 1)


def test_what_is_no_rule_file() -> None:
    for text in ("", "rules: []", "ckptkit-rules: 2\nrules: []", "- a", "ckptkit-rules: 1", "a: *x"):
        assert code_of(Rules.parse, text) == "rule-invalid", text


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "rules: " + "[" * 10_000,
        HEAD + "rules: " + "{a: " * 5_000,
        HEAD + "rules:\n" + "".join(" " * n + "- \n" for n in range(1, 100)) + " " * 100 + "- x",
        BOMB,
        HEAD + "rules: &a [*a]",
        HEAD + 'rules:\n- {from: "' + "{i}." * 3_000 + '", to: b}',
        HEAD + 'rules:\n- {from: "a.{' + "(" * 500 + 'i}", to: b}',
        HEAD + 'rules:\n- {from: "a.{i+' + "1+" * 3000 + '1}", to: b}',
        HEAD + "keep_others: true\nrules:\n- {fill: 'a.{i}', over: {i: 999999999999}, shape: [1]}",
        HEAD + "keep_others: true\nlet: {n: n+1}\nrules:\n- {fill: a, shape: [n]}",
        HEAD + "keep_others: true\nlet: {a: b, b: a}\nrules:\n- {fill: a, shape: [a]}",
        HEAD + "keep_others: true\nlet: {a: 999999999999*999999999999}\nrules:\n- {fill: a, shape: [a]}",
        HEAD + "rules:\n- {from: x, to: 'y.{i}', unstack: {over: i, dim: 0}}",
        HEAD + "rules:\n- {from: x, to: 'y.{i}', split: {over: i, dim: 0, parts: 1000000000, sizes: equal}}",
        HEAD + "keep_others: true\nrules:\n- {fill: 'a.{i}.{j}', over: {i: 0, j: 999999999999}, shape: [1]}",
        HEAD + "keep_others: true\nrules:\n- {fill: 'a.{i}.{j}', over: {i: 9999, j: 9999}, shape: [1]}",
        HEAD
        + f"let: {{{', '.join(f'a{n}: [a{n + 1}, a{n + 1}, a{n + 1}]' for n in range(60))}, a60: config.no}}\n"
        + "keep_others: true\nrules:\n- {fill: a, shape: [a0]}",
        HEAD + "rules:\n- {from: 'x', to: y, when: 'a[" + "a[" * 400 + "0" + "]" * 401 + "'}",
        HEAD
        + "keep_others: true\nrules:\n"
        + "".join(f"- {{tie: 't{n}.{{r}}', to: '{{r:**}}'}}\n" for n in range(600)),
    ],
)
def test_bombs_are_refused(text: str) -> None:
    graph = names("x", shape=(0, 10**15, 3))
    tensors = {name: type(graph["x"])(graph["x"].dtype, (10**15, 0)) for name in ("x", *map(str, range(900)))}
    graph = type(graph)(tensors, graph.origin)
    start = process_time()
    try:
        found = {finding.code for finding in Rules.parse(text).check(graph)}
    except CkptError as error:
        found = {error.code}
    assert found & {"rule-invalid", "over-budget", "rule-value"}
    assert process_time() - start < 5  # a second on a machine that does nothing else


def test_work_grows_with_the_names_and_not_with_the_problems() -> None:
    """Thousands of rules that match nothing, and thousands of names that no rule takes."""
    rules = Rules.of([{"from": f"net.part_{n}.{{i}}.weight", "to": f"n.{n}.{{i}}"} for n in range(3000)])
    graph = names(*(f"model.block{'abcdefghij'[n % 10]}.{n}.weights" for n in range(20_000)))
    start = process_time()
    found = rules.check(graph)
    assert process_time() - start < 5
    assert len(found) == 3010


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with path.open("wb") as file:
        file.truncate(nodes.SIZE + 1)
    assert code_of(Rules.load, path) == "over-budget"


@pytest.fixture(scope="module")
def refused() -> Callable[[str], bool]:
    """Whether the JSON Schema for editors refuses a rule file, its YAML read with types or as texts."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs the test extra")
    schema = json.loads((Path(ruleset.__file__).parent / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def refuses(text: str) -> bool:
        typed, texts = yaml.safe_load(text), nodes.data(nodes.load(text, "r.yaml"))
        found = {bool(list(validator.iter_errors(data))) for data in (typed, texts)}
        assert len(found) == 1
        return found.pop()

    return refuses


@pytest.mark.parametrize("name", ruleset.presets())
def test_the_schema_accepts_the_presets(name: str, refused: Callable[[str], bool]) -> None:
    assert not refused(ruleset.preset_text(name))
    assert not refused(Rules.preset(name).text())


@pytest.mark.parametrize(
    "rule",
    [
        "{from: a, too: b}",
        "{from: a}",
        "{frm: a, to: b}",
        "{from: a, to: b, ops: [{hedas: {}}]}",
        "{from: a, to: b, ops: [{part: {dim: 0, ops: []}}]}",
        "{from: a, to: b, ops: [transposed]}",
        "{from: a, to: b, ops: [reshape]}",
        "{from: a, to: b, ops: [{heads: {dim: 0, view: [1]}}]}",
        "{from: a, to: b, ops: [{cast: float99}]}",
        "{from: a, to: b, ops: [{part: {dim: 0, ops: [{ad: 1}]}}]}",
        "{from: a, to: b, ops: [{resize: {dims: 0, to: 3, mode: bicubic}}]}",
        "{from: [a, b], to: c, combine: {with: median}}",
        "{from: [a, b], to: c, concat: {}}",
        "{from: a, to: b, optional: maybe}",
        "{fill: a}",
        "{tie: a}",
        "{scope: {form: a}, rules: []}",
        "{drop: a, to: b}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(rule: str, refused: Callable[[str], bool]) -> None:
    text = f"{HEAD}rules:\n- {rule}\n"
    assert refused(text)
    assert code_of(Rules.parse, text) in ("rule-invalid", "dtype-unknown")
    assert refused(HEAD + "ruels: []\n")


def test_python_rules_are_the_same_rules() -> None:
    made = Rules.of([{"from": "a.{i}", "to": "b.{n-1-i}"}], let={"n": "count(a.{i})"})
    assert list(made.apply(names("a.0", "a.1", "a.2")).graph) == ["b.2", "b.1", "b.0"]
    assert Rules.parse(made.text()).text() == made.text()
    assert isinstance(made.parsed.rules[0], model.Rule)
    assert code_of(Rules.of, [{"from": "a", "to": object()}]) == "rule-invalid"


def test_unknown_presets_are_told_the_nearest() -> None:
    with pytest.raises(CkptError) as caught:
        Rules.load("vit-timm-hff")
    assert caught.value.code == "not-found"
    assert "vit-timm-hf" in (caught.value.hint or "")


def test_templates_are_parsed_once() -> None:
    assert template.template("a.{i}") is template.template("a.{i}")


def test_each_operation_is_shown_on_a_page() -> None:
    """In a rule of a block that the tests run, and in words."""
    pages = [path.read_text("utf-8") for path in sorted((ROOT / "docs" / "rules").glob("*.md"))]
    shown = "\n".join(block for page in pages for block in re.findall("```python\n(.*?)```", page, re.DOTALL))
    words = {*operations.OPERATIONS, *joins.JOINS, *joins.SPLITS, *language.KEYS}
    unshown = {word for word in words if not re.search(rf"[\[{{, ]{word}[:,\]]", shown)}
    assert not unshown
