"""`ckptkit digest`, seen from outside."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit as ck
from tests.house import samples
from tests.support import Result, environment

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    samples.safetensors(tmp_path / "x.safetensors")
    samples.pytorch(tmp_path / "x.pt")
    samples.onnx(tmp_path / "x.onnx")
    samples.lfs_pointer(tmp_path / "lfs.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_line_each_and_the_same_digest_in_every_format(folder: Path, run: Run) -> None:
    done = run("digest", "x.safetensors", "x.pt", "x.onnx")
    digest = ck.digest("x.pt").digest
    assert done.code == 0
    assert done.stdout.splitlines() == [f"{digest}  {path}" for path in ("x.safetensors", "x.pt", "x.onnx")]
    nameless = run("digest", "--ignore-names", "x.pt").stdout
    assert nameless == f"{ck.digest('x.pt').nameless}  x.pt\n"


def test_tensors_and_json_list_them_all(folder: Path, run: Run) -> None:
    found = ck.digest("x.pt")
    lines = run("digest", "--tensors", "x.pt").stdout.splitlines()
    assert lines == [f"{found.digest}  x.pt", *(f"{d}  x.pt\t{n}" for n, d in found.tensors.items())]
    one = run("digest", "--json", "x.pt").json
    assert one == {
        "schema": "ckptkit.digest/1",
        "path": "x.pt",
        "digest": found.digest,
        "tensors": dict(found.tensors),
    }
    several = run("digest", "--json", "x.pt", "missing.pt")
    assert (several.code, several.json[0]) == (2, one)
    assert (several.json[1]["code"], several.json[1]["path"]) == ("not-found", "missing.pt")


def test_a_broken_file_does_not_hide_the_others(folder: Path, run: Run) -> None:
    done = run("digest", "lfs.bin", "x.pt")
    assert (done.code, done.stdout) == (2, f"{ck.digest('x.pt').digest}  x.pt\n")
    assert "error[lfs-pointer]" in done.stderr


@pytest.mark.parametrize("options", [[], ["--tensors"], ["--json"], ["--ignore-names"]])
def test_what_was_saved_is_checked(folder: Path, run: Run, options: list[str]) -> None:
    Path("saved").write_text(run("digest", *options, "x.pt", "x.onnx").stdout, "utf-8")
    done = run("digest", "--check", "saved")
    assert (done.code, done.stdout, done.stderr) == (0, "x.pt: OK\nx.onnx: OK\n", "")
    assert run("digest", "--check", "saved", "-q").stdout == ""

    save_file(
        {"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.array([0.25, -0.25], np.float32)}, "x.onnx"
    )
    done = run("digest", "--check", "saved")
    assert done.code == 1
    lines = ["x.pt: OK", "x.onnx: FAILED"]
    if options in (["--tensors"], ["--json"]):
        lines.append("x.onnx  fc.weight: FAILED")
    assert done.stdout.splitlines() == lines
    verdict = run("digest", "--check", "saved", "--format", "json").json
    assert (verdict["schema"], verdict["verdict"]) == ("ckptkit.digest-check/1", "different")
    assert verdict["results"][0] == {"path": "x.pt", "name": None, "status": "ok"}

    Path("x.onnx").unlink()
    done = run("digest", "--check", "saved")
    assert done.code == 2
    assert "x.onnx: FAILED to read" in done.stdout
    assert "error[not-found]" in done.stderr


def test_a_receipt_is_checked_also_where_the_file_has_moved(folder: Path, run: Run) -> None:
    assert run("convert", "x.pt", "y.safetensors", "--receipt", "r.json").code == 0
    assert run("digest", "--check", "r.json").stdout == "y.safetensors: OK\n"
    Path("y.safetensors").rename("z.safetensors")
    assert run("digest", "--check", "r.json").code == 2
    assert run("digest", "--check", "r.json", "z.safetensors").stdout == "z.safetensors: OK\n"
    assert run("digest", "--check", "r.json", "z.safetensors", "x.pt").code == 2


def test_what_cannot_be_done_is_said(folder: Path, run: Run) -> None:
    assert "error[usage]" in run("digest").stderr
    assert "error[listing-invalid]" in run("digest", "--check", "x.pt").stderr
    assert run("digest", "--textconv").code == 2
    assert "error[no-match]" in run("digest", "x.pt", "--include", "nothing").stderr


def test_textconv_never_fails(folder: Path, run: Run) -> None:
    found = ck.digest("x.pt").tensors
    done = run("digest", "--textconv", "x.pt")
    assert done.code == 0
    assert done.stdout.splitlines() == [
        f"fc.bias\tfloat32\t2\t{found['fc.bias'][:16]}",
        f"fc.weight\tfloat32\t2×3\t{found['fc.weight'][:16]}",
    ]
    graph = run("digest", "--textconv", "x.onnx").stdout
    assert "# opset\tai.onnx\t17" in graph
    assert "# node\tfc\t" in graph
    pointer = run("digest", "--textconv", "lfs.bin")
    assert pointer.code == 0
    assert "438,000,000 bytes" in pointer.stdout
    assert f"sha256:{'0' * 64}" in pointer.stdout
    Path("cut.pt").write_bytes(Path("x.pt").read_bytes()[:200])
    for path in ("cut.pt", "missing.pt"):
        broken = run("digest", "--textconv", path)
        assert (broken.code, len(broken.stdout.splitlines()), broken.stderr) == (0, 1, ""), path
        assert str(folder) not in broken.stdout
    defect = pytest.MonkeyPatch()
    defect.setattr("ckptkit.cli.textconv.digests", lambda tensors: 1 / 0)
    with defect.context():
        done = run("digest", "--textconv", "x.pt")
    defect.undo()
    assert (done.code, done.stdout) == (0, "internal: ZeroDivisionError\n")


def test_ties_and_what_is_no_tensor_are_lines_too(folder: Path, run: Run) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    shared = torch.zeros(2)
    torch.save({"model": {"b": shared, "a": shared}, "epoch": 3, "long": "x" * 1000}, "trainer.pt")
    lines = run("digest", "--textconv", "trainer.pt").stdout.splitlines()
    assert [text.split("\t")[0] for text in lines[:3]] == ["a", "b", "# tie"]
    assert "# object\tepoch\tint 3" in lines
    (long,) = [text for text in lines if "long" in text]
    assert len(long) < 300


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_shows_what_changed_in_a_checkpoint(folder: Path) -> None:
    repository = folder / "repository"

    def git(*arguments: str) -> str:
        driver = f'"{sys.executable}" -m ckptkit digest --textconv'
        identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
        config = [*identity, "-c", f"diff.ckptkit.textconv={driver}"]
        done = subprocess.run(
            ["git", *config, *arguments],
            cwd=repository,
            env=environment(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM="1"),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lines(text: str) -> list[str]:
        return [
            row for row in text.splitlines() if row.startswith(("+", "-")) and row[:3] not in ("+++", "---")
        ]

    repository.mkdir()
    git("init", "-q")
    (repository / ".gitattributes").write_text("*.safetensors diff=ckptkit\n*.bin diff=ckptkit\n")
    for name in ("x.safetensors", "lfs.bin"):
        shutil.copy(folder / name, repository / name)
    git("add", ".")
    git("commit", "-qm", "first")
    before = ck.digest(folder / "x.safetensors").tensors

    weights = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.array([0.25, -0.25], np.float32)}
    save_file(weights, repository / "x.safetensors", {"format": "pt"})
    after = ck.digest(repository / "x.safetensors").tensors
    expected = [
        f"-fc.weight\tfloat32\t2×3\t{before['fc.weight'][:16]}",
        f"+fc.weight\tfloat32\t2×3\t{after['fc.weight'][:16]}",
    ]
    assert lines(git("diff")) == expected
    git("commit", "-qam", "second")
    assert lines(git("show", "HEAD")) == expected
    assert lines(git("log", "-p", "-1", "--format=")) == expected

    (repository / "x.safetensors").write_bytes(b"broken")
    (repository / "lfs.bin").write_text(
        (repository / "lfs.bin").read_text().replace("438000000", "439000000")
    )
    shown = lines(git("diff"))
    assert any(row.startswith("+lfs-pointer: ") and "439,000,000" in row for row in shown)
    assert sum(row.startswith("-fc.") for row in shown) == 2
    assert len([row for row in shown if row.startswith("+")]) == 2


def test_a_listing_survives_awkward_paths(folder: Path, run: Run) -> None:
    if os.name == "nt":
        pytest.skip("no such names on Windows")
    awkward = "a\tb\\c\nd\x1b[31m\u202e\\x41.pt"
    shutil.copy("x.pt", awkward)
    printed = run("digest", "--tensors", awkward).stdout
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    Path("saved").write_text(printed, "utf-8")
    assert run("digest", "--check", "saved").code == 0
    assert json.loads(run("digest", "--json", awkward).stdout)["path"] == awkward


def test_upper_case_digits_and_paths_that_failed_are_taken(folder: Path, run: Run) -> None:
    save_file({"w": np.ones(3, np.float32)}, "good.safetensors")
    text = run("digest", "good.safetensors").stdout
    Path("upper").write_text(text[:64].upper() + text[64:])
    assert run("digest", "--check", "upper").code == 0
    failed = run("digest", "--json", "good.safetensors", "missing.pt")
    assert failed.code == 2
    Path("some.json").write_text(failed.stdout)
    done = run("digest", "--check", "some.json")
    assert (done.code, done.stdout) == (0, "good.safetensors: OK\n")


def test_a_line_that_is_no_digest_does_not_hide_the_others(folder: Path, run: Run) -> None:
    right, wrong = f"{ck.digest('x.pt').digest}  x.pt", f"{'0' * 64}  x.onnx"
    (folder / "list").write_text(f"{right}\nwhat is this\n{wrong}\n{'f' * 63}  x.pt\n")
    done = run("digest", "--check", "list")
    assert done.code == 2
    assert done.stdout.splitlines()[:2] == ["x.pt: OK", "x.onnx: FAILED"]
    assert "list, line 2" in done.stderr
    assert "list, line 4" in done.stderr
    document = run("digest", "--check", "list", "--json").json
    assert [row["status"] for row in document["results"]] == ["ok", "failed", "unread", "unread"]


def test_saved_digests_from_stdin(folder: Path) -> None:
    for text, code in ((f"{ck.digest('x.pt').digest}  x.pt\n", 0), (f"{'0' * 64}  x.pt\n", 1), ("\n", 2)):
        command = [sys.executable, "-m", "ckptkit", "digest", "--check", "-"]
        done = subprocess.run(
            command, input=text, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr
    ck.convert("x.pt", "y.safetensors", receipt="y.json")
    receipt = Path("y.json").read_text("utf-8")
    command = [sys.executable, "-m", "ckptkit", "digest", "--check", "-"]
    done = subprocess.run(
        command, input=receipt, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
