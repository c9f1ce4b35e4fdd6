"""Every code of an error or finding is in the table, and every code of the table is used."""

import ast
from collections.abc import Iterator
from pathlib import Path

from ckptkit.core.codes import CODES
from tests.support import ROOT

TABLE = ROOT / "ckptkit" / "core" / "codes.py"
# The types that carry a code as their first argument.
CARRIERS = {"CkptError": 0, "Finding": 0}


def trees(root: Path) -> dict[Path, ast.Module]:
    """The parsed sources below `root`, without the table itself."""
    files = sorted((root / "ckptkit").rglob("*.py"))
    table = root / TABLE.relative_to(ROOT)
    return {path: ast.parse(path.read_text("utf-8")) for path in files if path != table}


def carriers(sources: dict[Path, ast.Module]) -> dict[str, int]:
    """Name of each callable that takes a code → position of that argument.

    Besides the types: functions and methods (`self` not counted) with a parameter called `code`.
    """
    found = dict(CARRIERS)
    for tree in sources.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
                if "code" in names:
                    found.setdefault(node.name, names.index("code"))
    return found


def literals(node: ast.expr) -> Iterator[str]:
    """The strings an argument can be: a literal, or the branches of a conditional expression."""
    match node:
        case ast.Constant(value=str(code)):
            yield code
        case ast.IfExp(body=body, orelse=other):
            yield from literals(body)
            yield from literals(other)


def raised(sources: dict[Path, ast.Module]) -> dict[str, str]:
    """Code → one place where it is passed to a carrier."""
    known = carriers(sources)
    found = {}
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            match node.func:
                case ast.Name(id=name) | ast.Attribute(attr=name) if name in known:
                    given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                    given += node.args[known[name] : known[name] + 1]
                    for code in (code for value in given for code in literals(value)):
                        # A parameter called `code` may hold something else; then it is one plain word.
                        if name in CARRIERS or "-" in code:
                            found[code] = f"{path.name}:{node.lineno}"
    return found


def mentioned(sources: dict[Path, ast.Module]) -> set[str]:
    """Every string constant, for codes that reach their carrier through a table."""
    return {
        node.value
        for tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_code_in_use_is_in_the_table() -> None:
    unknown = {code: place for code, place in raised(trees(ROOT)).items() if code not in CODES}
    assert unknown == {}


def test_every_code_of_the_table_is_in_use() -> None:
    assert set(CODES) - mentioned(trees(ROOT)) == set()


def test_the_table_is_sorted_and_written_alike() -> None:
    assert list(CODES) == sorted(CODES)
    for code, meaning in CODES.items():
        assert code.replace("-", "").isalnum(), code
        assert code == code.lower(), code
        assert meaning == meaning.strip(), code
        assert meaning, code
        assert "|" not in meaning, f"{code}: it would break the table of the documentation"


def test_codes_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "ckptkit").mkdir()
    (tmp_path / "ckptkit" / "x.py").write_text(
        """
def refuse(where, code): raise errors.CkptError(code, "m")
class Walker:
    def bad(self, code): ...
    def go(self):
        self.bad("by-method")
        refuse(1, "by-helper")
        refuse(1, code="by-keyword")
        Finding("left" if self else "right", "note", "", "")
        raise CkptError("by-type", "not-this")
def unpack(code): ...
unpack("B"); CkptError("plain", "")
""",
        "utf-8",
    )
    expected = {"by-method", "by-helper", "by-keyword", "left", "right", "by-type", "plain"}
    assert set(raised(trees(tmp_path))) == expected
