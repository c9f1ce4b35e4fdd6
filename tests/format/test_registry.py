"""Formats are recognised by content, plugins only when they are needed, and the list tells the truth."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import ckptkit as ck
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.format import registry
from tests.support import ROOT, environment

GOOD = ROOT / "fixtures" / "good"


class Raw:
    """A format as a plugin would bring it: RAW1 and nothing more."""

    @staticmethod
    def read(path: str, options: ReadOptions) -> TensorGraph:
        return TensorGraph({}, Origin(path, "raw", files=(File.at(path),)))


RAW = registry.Format(
    "raw",
    "Raw arrays",
    (".raw",),
    f"{__name__}_module",
    lambda head: head.data.startswith(b"RAW1"),
    reads="nothing",
)


class Point:
    """An entry point that counts its loads."""

    name, value = "raw", "my_package:RAW"
    loads = 0

    def __init__(self, found: object) -> None:
        self.found = found

    def load(self) -> object:
        Point.loads += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> type[Point]:
    """`Point.found` may be changed; the plugin's module is importable."""
    point = Point(RAW)
    Point.loads = 0
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "ckptkit.formats" else [])
    monkeypatch.setitem(sys.modules, RAW.module, Raw)  # type: ignore[arg-type]
    Point.current = point  # type: ignore[attr-defined]
    return Point


def test_a_plugin_is_loaded_only_when_no_own_format_claims_the_file(
    plug: type[Point], tmp_path: Path
) -> None:
    ck.read(GOOD / "safetensors" / "tied.safetensors")
    assert plug.loads == 0
    path = tmp_path / "x.bin"
    path.write_bytes(b"RAW1....")
    assert ck.read(path).origin.format == "raw"
    assert plug.loads == 1


def test_a_plugin_is_listed_and_chosen_by_suffix(plug: type[Point]) -> None:
    assert "raw" in {info.name for info in ck.formats()}
    found = registry.for_suffix("out/x.RAW")
    assert found is RAW
    assert registry.named("raw") is RAW


@pytest.mark.parametrize("found", [RuntimeError("no such backend"), "a string"], ids=["raises", "no-format"])
def test_a_broken_plugin_is_named(plug: type[Point], found: object) -> None:
    plug.current.found = found  # type: ignore[attr-defined]
    with pytest.raises(ck.CkptError) as refusal:
        ck.formats()
    assert refusal.value.code == "plugin-broken"
    assert "raw" in str(refusal.value)


def test_a_package_that_is_missing_is_named_with_its_cure() -> None:
    line = registry.Format(
        "x", "X files", (".x",), "no_such_package_for_x.format", lambda head: True, needs=("xlib",)
    )
    with pytest.raises(ck.CkptError) as refusal:
        line.load()
    assert refusal.value.code == "package-missing"
    assert refusal.value.hint == "pip install xlib"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ck.CkptError) as refusal:
        registry.named("parquet")
    assert refusal.value.code == "format-unknown"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model.safetensors", "safetensors"),
        ("MODEL.PT", "pytorch"),
        ("a.b/pytorch_model.bin", "pytorch"),
        ("m.onnx", "onnx"),
        ("model", None),
        ("model.txt", None),
    ],
)
def test_a_target_gets_the_format_of_its_suffix(path: str, name: str | None) -> None:
    found = registry.for_suffix(path)
    assert (found.name if found else None) == name


def test_no_two_formats_share_a_name_or_suffix() -> None:
    names = [line.name for line in registry.FORMATS]
    suffixes = [suffix for line in registry.FORMATS for suffix in line.suffixes]
    assert len(set(names)) == len(names)
    assert len(set(suffixes)) == len(suffixes)


def test_the_list_tells_what_is_only_recognised() -> None:
    infos = {info.name: info for info in ck.formats()}
    assert len(infos) == len(ck.formats())
    assert infos["safetensors"].reads
    assert infos["safetensors"].writes
    assert not infos["gguf"].reads
    assert not infos["gguf"].writes
    assert infos["gguf"].missing
    for info in infos.values():
        assert info.reads or info.missing, info.name


@pytest.mark.parametrize("line", registry.FORMATS, ids=lambda line: line.name)
def test_what_is_written_has_a_writer(line: registry.Format) -> None:
    module = line.load()
    assert callable(module.read)
    assert hasattr(module, "layout") == bool(line.writes)
    assert hasattr(module, "open_with_reference") == bool(line.writes)


@pytest.mark.parametrize("stem", ["model", "model.onnx", "model.pt", "model.txt"])
def test_content_decides_whatever_the_suffix(tmp_path: Path, stem: str) -> None:
    path = tmp_path / stem
    path.write_bytes((GOOD / "safetensors" / "tied.safetensors").read_bytes())
    assert registry.identify(File.at(path)).name == "safetensors"


def test_reading_loads_neither_third_party_packages_nor_plugins() -> None:
    script = (
        "import sys, ckptkit as ck; ck.read(sys.argv[1])\n"
        "bad = {'numpy', 'torch', 'safetensors', 'onnx', 'yaml', 'ml_dtypes', 'importlib.metadata', 'zipfile', "
        "'ckptkit.format.safetensors.writer', 'ckptkit.format.foreign', 'ckptkit.format.folder'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    path = GOOD / "safetensors" / "tied.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
