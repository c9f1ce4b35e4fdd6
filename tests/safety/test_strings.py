"""Text from files reaches the terminal harmless, whatever the command, and never becomes a path."""

import json
import os
import re
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import Result

Run = Callable[..., Result]

NASTY = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "\u2066a\u2069", "line\nbreak", "carriage\rreturn",
    "tab\tulator", "nul\0byte", "\x08\x08back", "\u2028paragraph", "\ufeffbom", "\U000e0041tag", "../../escaped",
    "/absolute/escaped", "C:\\escaped", "..\\..\\escaped", "%s%n{0}", "--option", "$(escaped)", "`escaped`", "",
]  # fmt: skip


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def safetensors(path: Path) -> None:
    header: dict[str, object] = {"__metadata__": {name: name for name in NASTY}}
    for i, name in enumerate(NASTY):
        header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4 * len(NASTY)))


def pickled(path: Path) -> None:
    """Arrays of numpy under such names, beside objects of such classes with such values; half a surrogate too."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R(K\x03" + text("<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array += b"(K\x01K\x01\x85" + dtype + b"\x89C\x04" + bytes(4) + b"tb"
    body = b"}("
    for name in [*NASTY, "half \ud800"]:
        body += text(f"w {name}") + array
        module = name.encode("utf-8", "replace").replace(b"\n", b"?")
        body += text(f"o {name}") + b"cm" + module + b"\ncls\n" + text(name) + b"\x85R"
        body += text(f"v {name}") + text(name)
    path.write_bytes(b"\x80\x03" + body + b"u.")


def field(number: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def onnx(path: Path) -> None:
    names = [name.encode() for name in NASTY]
    graph = b"".join(
        field(5, b"\x08\x01\x10\x01" + field(8, name) + field(9, bytes(4))) for name in names if name
    )
    for name in filter(None, names):
        graph += field(1, field(1, b"a") + b"".join(field(number, name) for number in (2, 3, 4, 7)))
    props = b"".join(b"\x72" + field(1, field(1, name) + field(2, name))[1:] for name in names)
    opsets = b"".join(field(8, field(1, name) + b"\x10\x01") for name in [b"", *names[:8]])
    path.write_bytes(b"\x08\x08" + opsets + field(7, graph) + props)


MAKERS = {"x.safetensors": safetensors, "x.pt": pickled, "x.onnx": onnx}
LINES = [
    "inspect @", "inspect @ --lines", "inspect @ --json", "inspect @ --objects", "inspect @ --stats",
    "inspect @ --format markdown", "diff @ other.safetensors", "diff @ other.safetensors --json",
    "diff @ other.safetensors --format markdown", "diff other.safetensors @", "digest @ --tensors",
    "digest @ --json", "digest --textconv @", "scan @", "scan @ --json", "scan @ --format sarif", "convert @ y.pt",
    "convert @ y.safetensors -n", "convert @ y.safetensors --json", "convert @ w.pt --section \x1b[31m",
    "convert @ folder --to safetensors --max-shard-size 10",
    "convert @ z.safetensors --receipt r.json --sidecar s.json", "show @ w", "show @ \x1b[31mred",
    "inspect @ --objects --json", "diff @ other.safetensors --lines", "diff @ other.safetensors --stat",
    "diff @ other.safetensors --rules strip:\x1b", "digest --check @", "digest --check digests --json",
    "check @", "check @ --values --json", "check @ --format github", "check @ --format junit",
    "check @ --format markdown",
    "check @ --target other.safetensors", "check @ --target other.safetensors --format github",
    "check @ --target other.safetensors --format junit", "check other.safetensors --target @ --format markdown",
    "check other.safetensors --target contract.ckpt.yaml --format github", "check other.safetensors --target @ --json",
    "contract @", "contract @ --files --digest -o c.yaml", "rules check strip:w --on @ --explain \x1b[31mred",
    "rules check nasty.yaml --on @", "rules reverse nasty.yaml", "convert @ y.pt --rules nasty.yaml",
    "convert other.safetensors y.pt --rules strip:\x1b[31m", "convert @ y.onnx --into x.onnx --name-map r.json",
    "convert other.safetensors y.onnx --into @", "prove @ --against x.onnx", "prove x.onnx --against @",
    "export @ y.onnx --module collections:OrderedDict --input \x1b[31mx:float32[1]", "scan @ --allow \x1b[31m",
    "inspect \x1b[31m.pt", "inspect \u202e.safetensors", "rules list --json", "rules show \x1b[31m", "\x1b[31m",
    "inspect --\x1b[31m", "check @ --allow-missing \x1b[31m --json",
]  # fmt: skip
HARMLESS = {"\n"}


def harmful(said: str) -> list[str]:
    """Characters that a terminal would act on."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")
    return sorted({c for c in said if unicodedata.category(c) in kinds and c not in HARMLESS})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name, make in MAKERS.items():
        make(inner / name)
    raw = json.dumps({"fc": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (inner / "other.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    printed = [name for name in NASTY if name.isprintable()]
    rows = "".join(f"{'0' * 64}  {name}\n" for name in ["\x1b[31m.pt", "\u202egnp.exe", *printed] if name)
    (inner / "digests").write_text(rows)
    quoted = [json.dumps(name, ensure_ascii=True) for name in NASTY if name]
    (inner / "nasty.yaml").write_text(
        'ckptkit-rules: 1\nabout: "\\e[31m\\u202e"\nrules:\n'
        + "".join(f"- {{from: {q}, to: {q}}}\n" for q in quoted)
    )
    (inner / "contract.ckpt.yaml").write_text(
        "ckptkit-contract: 1\ntensors:\n" + "".join(f"  {q}: float32 [1]\n" for q in quoted)
    )
    monkeypatch.chdir(inner)
    return inner


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("line", LINES)
def test_nothing_harmful_is_printed_or_written(folder: Path, run: Run, name: str, line: str) -> None:
    before = set(folder.parents[1].rglob("*"))
    result = run(*(name if word == "@" else word for word in line.split(" ")))
    assert result.code in (0, 1, 2)
    assert "internal" not in result.stderr
    # A tab separates the columns of what programs read.
    said = (
        re.sub("\t", "", result.stdout) if "--lines" in line or line.startswith("digest") else result.stdout
    )
    assert harmful(said) == []
    assert harmful(result.stderr) == []
    written = {*folder.parents[1].rglob("*")} - before
    for path in written:
        if path.suffix in (".json", ".yaml"):
            assert harmful(path.read_text("utf-8")) == []
    new = {p.relative_to(folder).as_posix() for p in written}
    allowed = r"[yw]\.pt|[yz]\.safetensors|[rs]\.json|c\.yaml|y\.onnx(\.data)?|"
    allowed += r"folder(/model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?)?"
    assert [path for path in new if not re.fullmatch(allowed, path)] == []
    assert not os.path.lexists("/absolute/escaped")


@pytest.mark.parametrize("name", MAKERS)
def test_the_files_are_read(folder: Path, run: Run, name: str) -> None:
    """Else nothing above would be tested."""
    found = run("inspect", name, "--json")
    assert found.code == 0, found.stdout
    assert len(found.json["tensors"]) >= len(NASTY) - 1


def test_the_names_are_all_there(folder: Path, run: Run) -> None:
    """They are escaped for people, not lost: JSON gives them as they are."""
    found = run("inspect", "x.safetensors", "--json").json
    assert {tensor["name"] for tensor in found["tensors"]} == set(NASTY)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3, unique=True))
def test_any_name_is_harmless(folder: Path, run: Run, names: list[str]) -> None:
    """Any text at all, lone surrogates aside, which no safetensors header can hold."""
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
        for i, name in enumerate(names)
    }
    raw = json.dumps(header).encode()
    (folder / "any.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4 * len(names)))
    for line in (
        "inspect @",
        "digest @ --tensors",
        "diff @ other.safetensors",
        "check @ --target other.safetensors",
    ):
        done = run(*("any.safetensors" if word == "@" else word for word in line.split()))
        assert "internal" not in done.stderr
        assert harmful(done.stdout.replace("\t", "")) == []
        assert harmful(done.stderr) == []
