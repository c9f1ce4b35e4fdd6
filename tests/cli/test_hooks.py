"""The pre-commit hooks, run by the real pre-commit in a real repository; and what they are made of."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.house import samples
from tests.support import ROOT, environment

pytest.importorskip("pre_commit")
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

MEGABYTES = 150
PARTS = ("ckptkit", "pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml")


def git(*words: str, cwd: Path) -> str:
    settings = ["-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pre-commit keeps its environments; `hooks` beside it is this project as a repository."""
    folder = tmp_path_factory.mktemp("pre-commit")
    hooks = folder / "hooks"
    hooks.mkdir()
    for part in PARTS:
        source = ROOT / part
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, hooks / part, ignore=ignore) if source.is_dir() else shutil.copy(
            source, hooks
        )
    git("init", "-q", "-b", "main", cwd=hooks)
    git("add", "-A", cwd=hooks)
    git("commit", "-qm", "hooks", cwd=hooks)
    return folder


@pytest.fixture
def repository(tmp_path: Path, home: Path) -> Path:
    """A repository that uses both hooks."""
    config = f"""repos:
- repo: {home / "hooks"}
  rev: {git("rev-parse", "HEAD", cwd=home / "hooks")}
  hooks:
  - id: ckptkit-check
  - id: ckptkit-scan
"""
    git("init", "-q", "-b", "main", cwd=tmp_path)
    (tmp_path / ".pre-commit-config.yaml").write_text(config, "utf-8")
    return tmp_path


def commit(repository: Path, home: Path, *words: str) -> tuple[int, str]:
    """Stage everything and let pre-commit judge what is staged."""
    git("add", "-A", cwd=repository)
    env = environment(PRE_COMMIT_HOME=str(home / "cache"), PRE_COMMIT_COLOR="never")
    env.pop("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", *words],
        cwd=repository,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_both_hooks_pass_and_fail(repository: Path, home: Path) -> None:
    samples.safetensors(repository / "good.safetensors")
    started = time.monotonic()
    code, said = commit(repository, home)
    assert code == 0, said
    assert said.count("Passed") == 2
    (environment_,) = (home / "cache").glob("repo*/py_env*")
    size = sum(path.lstat().st_size for path in environment_.rglob("*") if not path.is_dir())
    assert size < MEGABYTES * 10**6
    assert time.monotonic() - started < 300

    # A contract that does not fit, half a download and a pickle that runs code: each is told, none hides another.
    (repository / "good.ckpt.yaml").write_text(
        "ckptkit-contract: 1\ntensors:\n  fc.weight: float32 [9, 9]\n", "utf-8"
    )
    data = samples.safetensors(repository / "half.safetensors").read_bytes()
    (repository / "half.safetensors").write_bytes(data[:-4])
    (repository / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    samples.pytorch(repository / "fine.pt")
    code, said = commit(repository, home)
    assert code == 1
    assert said.count("Failed") == 2
    assert "good.safetensors   does not fit" in said
    assert "error[truncated]" in said
    assert "fine.pt   healthy" in said
    assert "evil.pkl" in said

    # Everything is checked once, whatever of it was staged.
    assert said.count("good.safetensors   ") == 1


def test_parts_of_a_folder_stand_for_it(repository: Path, home: Path) -> None:
    shutil.copytree(ROOT / "fixtures" / "good" / "llama", repository / "llama")
    assert commit(repository, home)[0] == 0
    git("commit", "-qm", "a model", cwd=repository)
    index = repository / "llama" / "model.safetensors.index.json"
    index.write_text(index.read_text("utf-8").replace("00001-of", "00009-of"), "utf-8")
    code, said = commit(repository, home, "ckptkit-check")
    assert code == 1
    assert "error[shard-missing]" in said


def test_settings_count_and_deletions_are_seen(repository: Path, home: Path) -> None:
    weights = {"module.fc.weight": np.zeros((4, 4), np.int8)}
    save_file(weights, repository / "narrow.safetensors")
    assert commit(repository, home)[0] == 1
    (repository / ".ckptkit.toml").write_text('ignore = ["scales-missing"]\n', "utf-8")
    assert commit(repository, home)[0] == 0
    (repository / ".ckptkit.toml").write_text('[contracts]\n"gone.pt" = "gone.ckpt.yaml"\n', "utf-8")
    code, said = commit(repository, home)
    assert code == 1
    assert "error[not-found]" in said


def test_a_weight_that_git_lfs_should_hold(repository: Path, home: Path) -> None:
    samples.safetensors(repository / "model.safetensors")
    (repository / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n", "utf-8")
    # git-LFS is not installed: the file is staged as it is.
    for part, value in (("clean", "cat"), ("smudge", "cat"), ("required", "false")):
        git("config", f"filter.lfs.{part}", value, cwd=repository)
    code, said = commit(repository, home, "ckptkit-check")
    assert code == 1
    assert "lfs" in said
    assert "git add --renormalize" in said
    # With it, what is staged is the pointer.
    pointer = samples.lfs_pointer(repository / "pointer.txt").rename(repository / ".git" / "pointer.txt")
    git("config", "filter.lfs.clean", f"cat '{pointer}'", cwd=repository)
    os.utime(repository / "model.safetensors", (1, 1))
    git("add", "--renormalize", "model.safetensors", cwd=repository)
    code, said = commit(repository, home, "ckptkit-check")
    assert code == 0, said
