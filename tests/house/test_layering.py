"""Who may import whom: modules import from floors below their own, and siblings leave each other alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

# Top to bottom: folders of ckptkit/, and "facade", which is ckptkit/__init__.py: it names the functions and
# types for users and is of no use inside.
FLOORS = ("cli", "facade", "verbs", "match", "targets", "rules", "format", "ops", "core")
# The public test class for formats may import anything; nothing imports it.
EXEMPT = "ckptkit.testing"
# Spells out nothing of where it leads; absolute names only.
RELATIVE = "ckptkit.<relative>"
# click and tabulate belong to the command line.
CLI_ONLY = {"click", "tabulate"}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name → file of each module of the package `ckptkit` under `root`."""
    found = {}
    for path in sorted((root / "ckptkit").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def floor(module: str) -> str:
    """The floor a module of ckptkit stands on; one that is on none is refused where it is defined."""
    head = module.split(".")[1:2]
    if not head:
        return "facade"
    if head[0] == "__main__":
        return "cli"
    return head[0]


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, at module level and inside functions alike.

    Counts `import_module("…")` with a literal name too; a name imported from a package is the submodule if
    there is one of that name.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(level=level) if level:
                yield node.lineno, RELATIVE
            case ast.ImportFrom(module=module, names=names):
                for alias in names:
                    full = f"{module}.{alias.name}"
                    yield node.lineno, full if full in known else str(module)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def format_units(root: Path) -> set[str]:
    """The formats: a folder each in ckptkit/format. What lies beside them is shared between them."""
    return {path.parent.name for path in (root / "ckptkit" / "format").glob("*/__init__.py")}


def violations(root: Path) -> list[str]:
    """One line per import that the layering forbids."""
    known = modules(root)
    formats = format_units(root)
    bad = []
    for importer, path in known.items():
        if importer == EXEMPT:
            continue
        mine = floor(importer)
        if mine not in FLOORS:
            bad.append(f"{path.relative_to(root)}: stands on no floor")
            continue
        for line, name in imports(path, known):
            place = f"{path.relative_to(root)}:{line}"
            package = name.split(".")[0]
            if package in CLI_ONLY and mine != "cli":
                bad.append(f"{place}: only ckptkit/cli imports {package}")
            if package != "ckptkit" or name == importer:
                continue
            theirs = floor(name)
            if name == RELATIVE:
                bad.append(f"{place}: a relative import")
            elif name == EXEMPT:
                bad.append(f"{place}: nothing imports {EXEMPT}")
            elif theirs not in FLOORS:
                bad.append(f"{place}: {name} stands on no floor")
            elif FLOORS.index(theirs) < FLOORS.index(mine):
                bad.append(f"{place}: {mine} imports {name} from a floor above")
            elif mine == theirs and mine in ("verbs", "format"):
                here, there = (module.split(".")[2:3] for module in (importer, name))
                if here != there and there and (mine == "verbs" or there[0] in formats):
                    bad.append(f"{place}: {importer} imports its sibling {name}")
    return bad


def test_every_import_points_down() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("core/x.py", "from ckptkit.ops import layout", "imports ckptkit.ops.layout from a floor above"),
        (
            "core/x.py",
            "def f():\n    import ckptkit.verbs.plan",
            "imports ckptkit.verbs.plan from a floor above",
        ),
        ("core/x.py", "from ckptkit import verbs", "imports ckptkit.verbs from a floor above"),
        ("core/x.py", "from ckptkit import __version__", "imports ckptkit from a floor above"),
        ("core/x.py", "import_module('ckptkit.cli')", "imports ckptkit.cli from a floor above"),
        ("verbs/plan.py", "from ckptkit.verbs.inspect import read", "its sibling ckptkit.verbs.inspect"),
        ("verbs/plan.py", "from ckptkit.cli.render import table", "ckptkit.cli.render from a floor above"),
        ("format/st.py", "from ckptkit.format.onnx import wire", "its sibling ckptkit.format.onnx.wire"),
        ("format/onnx/x.py", "from ckptkit.format.st import read", "its sibling ckptkit.format.st"),
        (
            "format/registry.py",
            "import ckptkit.format.st\n'ckptkit.format.st'",
            "its sibling ckptkit.format.st",
        ),
        ("core/x.py", "def f():\n    import tabulate", "only ckptkit/cli imports tabulate"),
        ("cli/x.py", "from ckptkit.testing import FormatContract", "nothing imports ckptkit.testing"),
        ("cli/x.py", "from . import render", "a relative import"),
        ("extra.py", "", "stands on no floor"),
        ("cli/x.py", "import ckptkit.extra", "ckptkit.extra stands on no floor"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    package = sample(tmp_path)
    (package / path).write_text(source, "utf-8")
    assert [line for line in violations(tmp_path) if complaint in line], violations(tmp_path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/x.py", "import click\nfrom ckptkit import __version__\nfrom ckptkit.verbs.plan import plan"),
        ("verbs/plan.py", "from ckptkit.format import registry\nfrom ckptkit.core import dtypes"),
        ("format/onnx/x.py", "from ckptkit.format import registry\nfrom ckptkit.format.onnx import wire"),
        ("format/st/x.py", "def f():\n    from ckptkit.ops.layout import transpose"),
        ("testing.py", "from ckptkit.cli import main\nimport ckptkit.verbs.plan"),
    ],
)
def test_an_allowed_import_is_not(tmp_path: Path, path: str, source: str) -> None:
    package = sample(tmp_path)
    (package / path).write_text(source, "utf-8")
    assert violations(tmp_path) == []


def sample(root: Path) -> Path:
    """A small package with the modules that the cases above speak of."""
    package = root / "ckptkit"
    modules = ["__init__", "cli/__init__", "cli/render", "verbs/__init__", "verbs/inspect", "verbs/plan"]
    modules += ["core/__init__", "core/dtypes", "ops/__init__", "ops/layout"]
    modules += [
        "format/__init__",
        "format/registry",
        "format/st/__init__",
        "format/onnx/__init__",
        "format/onnx/wire",
    ]
    for name in modules:
        target = package / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("", "utf-8")
    return package
