"""`ckptkit check` and `ckptkit contract` on the command line."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.house import samples
from tests.support import ROOT, Result, environment

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Path:
    """x.safetensors and its contract, x.pt with the same tensors, other.safetensors with more outputs."""
    monkeypatch.chdir(tmp_path)
    samples.safetensors(tmp_path / "x.safetensors")
    samples.pytorch(tmp_path / "y.pt")
    weights = {"fc.weight": np.zeros((5, 3), np.float32), "fc.bias": np.zeros(5, np.float32)}
    save_file(weights, "other.safetensors")
    assert run("contract", "x.safetensors", "-o", "x.ckpt.yaml").code == 0
    return tmp_path


def test_the_contract_is_short_and_names_its_checkpoint(folder: Path) -> None:
    assert Path("x.ckpt.yaml").read_text("utf-8").splitlines() == [
        "ckptkit-contract: 1",
        "checkpoint: x.safetensors",
        "dimensions: {classes: 2}",
        "tensors:",
        "  fc.weight: float32 [classes, 3]",
        "  fc.bias: float32 [classes]",
    ]


def test_text(folder: Path, run: Run) -> None:
    assert run("check", "y.pt", "--target", "x.ckpt.yaml").stdout == "y.pt   fits · 2 tensors\n"
    done = run("check", "other.safetensors", "--target", "x.ckpt.yaml")
    assert done.code == 1
    assert done.stdout.splitlines() == [
        "other.safetensors   does not fit · fits except the head · 0 of 2 tensors fit",
        "shape       fc.weight   expected 2×3, found 5×3   5 outputs instead of 2: another number of classes",
        "shape       fc.bias   expected 2, found 5   5 outputs instead of 2: another number of classes",
        "next        ckptkit check other.safetensors --target x.ckpt.yaml --allow-mismatch 'fc.*'",
    ]  # no convert --fit: nothing would be left of it
    assert run("check", "other.safetensors", "--target", "x.ckpt.yaml", "--allow-mismatch", "fc.*").code == 0
    assert run("check", "x.safetensors", "-q").stdout == ""


def test_json(folder: Path, run: Run) -> None:
    done = run("check", "other.safetensors", "y.pt", "none.pt", "--target", "x.ckpt.yaml", "--json")
    assert done.code == 2
    misfit, fits, unread = done.json
    assert (misfit["schema"], misfit["verdict"], fits["verdict"]) == (
        "ckptkit.check/1",
        "does not fit",
        "fits",
    )
    assert {"code", "severity", "name", "expected", "found", "hint"} <= misfit["findings"][0].keys()
    assert misfit["findings"][0]["code"] == "shape-differs"
    assert (unread["schema"], unread["code"], unread["path"]) == ("ckptkit.error/1", "not-found", "none.pt")
    assert run("check", "y.pt", "--target", "x.ckpt.yaml", "--json").json["findings"] == []


def test_junit_and_github_and_markdown(folder: Path, run: Run) -> None:
    line = ["check", "other.safetensors", "y.pt", "none.pt", "--target", "x.ckpt.yaml", "--format"]
    suite = ElementTree.fromstring(run(*line, "junit").stdout)
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    failed, passed, unread = suite
    assert "fc.weight" in str(failed[0].text)
    assert len(passed) == 0
    assert unread[0].get("type") == "not-found"
    github = run(*line, "github").stdout.splitlines()
    assert github[0].startswith("::error file=other.safetensors,title=shape-differs::fc.weight")
    assert github[-1].startswith("::error file=none.pt,title=not-found::")
    assert "%0A" in github[2]
    markdown = run(*line, "markdown").stdout
    assert "### other.safetensors: does not fit" in markdown
    assert "| shape |" in markdown


def test_a_hostile_name_reaches_no_workflow_command(folder: Path, run: Run) -> None:
    save_file({"a\n::error::b": np.zeros(1, np.float32)}, "evil.safetensors")
    done = run("check", "evil.safetensors", "--target", "x.ckpt.yaml", "--format", "github")
    assert all(line.startswith("::error file=evil.safetensors") for line in done.stdout.splitlines())
    ElementTree.fromstring(
        run("check", "evil.safetensors", "--target", "x.ckpt.yaml", "--format", "junit").stdout
    )


def test_the_contract_that_belongs_is_found(folder: Path, run: Run) -> None:
    assert run("check", "x.safetensors", "--json").json["target"] == "x.ckpt.yaml"
    assert run("check", "x.ckpt.yaml", "--json").json["path"] == "x.safetensors"
    assert run("check", "y.pt", "--json").json["target"] is None
    Path(".ckptkit.toml").write_text('[contracts]\n"*.pt" = "x.ckpt.yaml"\n', "utf-8")
    assert run("check", "y.pt", "--json").json["target"] == "x.ckpt.yaml"
    # A checkpoint is checked once, whatever of it is named.
    assert run("check", "x.safetensors", "x.ckpt.yaml", "./x.safetensors").stdout.count("fits") == 1
    Path(".ckptkit.toml").write_text("[contracts", "utf-8")
    assert "error[configuration-invalid]" in run("check", "y.pt").stderr


def test_files_of_a_folder_stand_for_it(folder: Path, run: Run, fixtures_dir: Path) -> None:
    shutil.copytree(fixtures_dir / "good" / "llama", "llama")
    Path("tool").mkdir()
    Path("tool/config.json").write_text("{}", "utf-8")
    names = ["config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors"]
    done = run("check", *(f"llama/{name}" for name in names), "tool/config.json", "--json")
    assert done.json["path"] == "llama"
    assert done.json["tensors"] == 39


def test_all_finds_what_was_deleted(folder: Path, run: Run) -> None:
    assert run("check", "--all").code == 0
    Path("x.safetensors").unlink()
    done = run("check", "--all")
    assert done.code == 2
    assert "error[not-found]" in done.stderr


def test_a_contract_with_a_mistake_says_where(folder: Path, run: Run) -> None:
    Path("x.ckpt.yaml").write_text("ckptkit-contract: 1\ntensors:\n  a: flaot32 [2]\n", "utf-8")
    done = run("check", "x.safetensors", "y.pt")
    assert done.code == 2
    assert "error[contract-invalid]: there is no dtype 'flaot32' — x.ckpt.yaml:3" in done.stderr
    assert "meant: float32" in done.stderr
    assert "y.pt   healthy" in done.stdout


def test_health(folder: Path, run: Run, fixtures_dir: Path) -> None:
    done = run("check", fixtures_dir / "good" / "trainer.pt", "--json")
    assert done.code == 0
    codes = {item["code"] for item in done.json["findings"]}
    assert {"optimizer-shipped", "names-wrapped", "ema-left-out"} <= codes
    save_file({"fc.weight": np.zeros((4, 4), np.int8)}, "narrow.safetensors")
    done = run("check", "narrow.safetensors")
    assert done.code == 1
    assert "its scales are missing" in done.stdout
    samples.lfs_pointer(folder / "lfs.bin")
    done = run("check", "lfs.bin", "narrow.safetensors")
    assert done.code == 2
    assert "error[lfs-pointer]" in done.stderr
    assert "narrow.safetensors   unhealthy" in done.stdout


READABLE = [
    ("pytorch/zip-deflated.pt", "zip-deflated"),
    ("pytorch/zip-outside.pt", "zip-root"),
    ("pytorch/zip-rootless.pt", "zip-root"),
    ("pytorch/zip-trailing.pt", "bytes-unclaimed"),
    ("folders/sharded_stale_size", "total-size-mismatch"),
    ("folders/sharded_unlisted", "not-in-index"),
    ("folders/sharded_overlay", "shadowed-copy"),
    ("trainer.pt", "optimizer-shipped"),
    ("trainer.pt", "names-wrapped"),
]


@pytest.mark.parametrize(("path", "code"), READABLE)
def test_what_ails_a_readable_checkpoint_is_mended(
    path: str, code: str, tmp_path: Path, fixtures_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("check", fixtures_dir / "good" / path, "--json").json
    assert (found["verdict"], found["summary"]) == ("fits", "healthy, with warnings")
    assert code in {item["code"] for item in found["findings"]}
    words = shlex.split(found["fixes"][0])
    done = run(*words[1:], "-q")
    assert done.code == 0, done.stderr
    again = run("check", words[3], "--json").json
    assert (again["summary"], again["findings"]) == ("healthy", [])


@pytest.mark.parametrize("code", ["not-in-shard", "shard-missing"])
def test_what_keeps_a_checkpoint_from_being_read(code: str, fixtures_dir: Path, run: Run) -> None:
    done = run("check", fixtures_dir / "hostile" / "folders" / code.replace("-", "_"))
    assert done.code == 2
    assert f"error[{code}]" in done.stderr


def test_half_a_download_and_a_contradicting_header(folder: Path, run: Run) -> None:
    data = Path("x.safetensors").read_bytes()
    Path("half.safetensors").write_bytes(data[:-4])
    Path("wrong.safetensors").write_bytes(data.replace(b"[2,3]", b"[2,4]").replace(b"[2, 3]", b"[2, 4]"))
    done = run("check", "half.safetensors", "wrong.safetensors", "y.pt")
    assert done.code == 2
    assert "error[truncated]" in done.stderr
    assert "error[size-mismatch]" in done.stderr
    assert "y.pt   healthy" in done.stdout


def test_a_stale_quantization_config(folder: Path, run: Run, fixtures_dir: Path) -> None:
    shutil.copytree(fixtures_dir / "good" / "llama", "llama")
    config = json.loads(Path("llama/config.json").read_text("utf-8"))
    Path("llama/config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    done = run("check", "llama", "--json")
    assert (done.code, [item["code"] for item in done.json["findings"]]) == (1, ["stale-quantization"])


def test_values(folder: Path, run: Run) -> None:
    tensors = {
        "broken.weight": np.full((4, 4), np.nan, np.float32),
        "empty.weight": np.zeros((4, 4), np.float32),
        "flat.weight": np.ones((4, 4), np.float32),
        "norm.weight": np.ones(64, np.float32),
        "fine.weight": np.arange(16, dtype=np.float32).reshape(4, 4),
    }
    save_file(tensors, "v.safetensors")
    assert run("check", "v.safetensors").code == 0
    done = run("check", "v.safetensors", "--values", "--json")
    assert done.code == 1
    codes = {item["name"]: item["code"] for item in done.json["findings"]}
    assert codes == {"broken.weight": "not-finite", "empty.weight": "all-zero", "flat.weight": "constant"}
    run("contract", "v.safetensors", "-o", "v.ckpt.yaml")
    assert run("check", "v.safetensors").code == 0
    assert run("check", "v.safetensors", "--values").code == 1


def test_update_shows_what_changes(folder: Path, run: Run) -> None:
    text = Path("x.ckpt.yaml").read_text("utf-8") + "optional:\n  extra.{0..3}: any\nforbidden: ['*.lora*']\n"
    Path("x.ckpt.yaml").write_text("# why\n" + text, "utf-8")
    assert "still fits" in run("contract", "x.safetensors", "-o", "x.ckpt.yaml", "--update").stderr
    shutil.copy("other.safetensors", "x.safetensors")
    dry = run("contract", "x.safetensors", "-o", "x.ckpt.yaml", "--update", "-n")
    changes = [line for line in dry.stdout.splitlines() if re.match("[+-] *[a-z]", line)]
    assert changes == ["-dimensions: {classes: 2}", "+dimensions: {classes: 5}"]
    assert run("check", "x.safetensors").code == 1
    assert run("contract", "x.safetensors", "-o", "x.ckpt.yaml", "--update").stdout == dry.stdout
    assert run("check", "x.safetensors").code == 0
    after = Path("x.ckpt.yaml").read_text("utf-8")
    assert after.startswith("# why\n")
    assert "extra.{0..3}: any" in after
    assert "*.lora*" in after
    assert run("contract", "x.safetensors", "-o", "x.ckpt.yaml").code == 2


def test_a_thousand_files_leak_no_descriptor(folder: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("no such limit on Windows")
    Path("many").mkdir()
    for number in range(1000):
        shutil.copy("x.safetensors", f"many/{number}.safetensors")
    driver = (
        "import resource, sys, glob\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "from ckptkit.cli import main\n"
        "sys.exit(main(['check', *glob.glob('many/*'), '--target', 'x.ckpt.yaml']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", driver],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1000 fit\n")


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("weights/model.safetensors", True),
        ("a.pt", True),
        ("x/model_best.pth.tar", True),
        ("m/pytorch_model-00001-of-00002.bin", True),
        ("m/model.safetensors.index.json", True),
        ("m/config.json", True),
        ("m.ckpt.yaml", True),
        (".ckptkit.toml", True),
        ("firmware.bin", False),
        ("tsconfig.json", False),
        ("notes.txt", False),
        ("script.py", False),
    ],
)
def test_the_hook_takes_what_belongs_to_checkpoints(path: str, taken: bool) -> None:
    yaml = pytest.importorskip("yaml")
    (hook,) = (
        h for h in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text()) if h["id"] == "ckptkit-check"
    )
    assert bool(re.search(hook["files"], path)) == taken
    assert hook["require_serial"] is True
    assert hook["entry"].split()[:2] == ["ckptkit", "check"]


def test_sarif(folder: Path, run: Run) -> None:
    Path("100% odd\n#.safetensors").write_bytes(Path("other.safetensors").read_bytes())
    line = ("check", "other.safetensors", "100% odd\n#.safetensors", "none.pt", "--target", "x.ckpt.yaml")
    done = run(*line, "--format", "sarif")
    assert done.code == 2
    document = done.json
    assert (document["version"], set(document)) == ("2.1.0", {"$schema", "version", "runs"})
    (found,) = document["runs"]
    rules = [rule["id"] for rule in found["tool"]["driver"]["rules"]]
    assert rules == ["not-found", "shape-differs"]
    for result in found["results"]:
        assert set(result) <= {"ruleId", "ruleIndex", "level", "message", "locations", "properties"}
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["region"]["startLine"] >= 1
        assert re.fullmatch(r"[\w./%-]+", place["artifactLocation"]["uri"])
    names = [
        at["fullyQualifiedName"]
        for r in found["results"]
        for at in r["locations"][0].get("logicalLocations", ())
    ]
    assert names == ["fc.weight", "fc.bias"] * 2
    assert "next: ckptkit check" in found["results"][0]["message"]["text"]


def test_findings_are_chosen_by_code(folder: Path, run: Run, fixtures_dir: Path) -> None:
    trainer = fixtures_dir / "good" / "trainer.pt"
    codes = lambda done: {item["code"] for item in done.json["findings"]}  # noqa: E731
    assert codes(run("check", trainer, "--json", "--select", "names-*")) == {"names-wrapped"}
    done = run("check", trainer, "--json", "--ignore", "names-wrapped", "--ignore", "optimizer-shipped")
    assert (codes(done), done.json["summary"]) == ({"ema-left-out"}, "healthy")
    done = run("check", "other.safetensors", "--target", "x.ckpt.yaml", "--ignore", "shape-differs", "--json")
    assert (done.code, done.json["verdict"], done.json["summary"], done.json["allowed"]) == (
        0,
        "fits",
        "fits",
        2,
    )
    assert done.json["fixes"] == []
    samples.lfs_pointer(folder / "pointer.pt")
    done = run("check", "pointer.pt", "--ignore", "lfs-pointer")
    assert done.code == 0
    assert "not checked: this is a git-LFS pointer" in done.stdout
    done = run("check", "pointer.pt", "--ignore", "lfs-ponter")
    assert done.code == 2
    assert "meant: lfs-pointer" in done.stderr


SETTINGS = """
ignore = ["optimizer-shipped"]
severity = {names-wrapped = "error", ema-left-out = "warning"}
[contracts]
"y.pt" = "x.ckpt.yaml"
[paths."oth*"]
allow-mismatch = ["fc.*"]
[paths."old/*"]
ignore = ["names-*"]
"""


@pytest.mark.parametrize("name", [".ckptkit.toml", "pyproject.toml"])
def test_a_project_settles_what_counts(folder: Path, run: Run, fixtures_dir: Path, name: str) -> None:
    lines = SETTINGS
    if name == "pyproject.toml":
        lines = "[tool.ckptkit]" + SETTINGS.replace("[contracts]", "[tool.ckptkit.contracts]").replace(
            "[paths", "[tool.ckptkit.paths"
        )
    Path(name).write_text(lines, "utf-8")
    shutil.copy(fixtures_dir / "good" / "trainer.pt", "trainer.pt")
    Path("old").mkdir()
    shutil.copy("trainer.pt", "old/trainer.pt")
    done = run("check", "trainer.pt", "--json")
    assert done.code == 1
    found = {item["code"]: item["severity"] for item in done.json["findings"]}
    assert found == {"names-wrapped": "error", "ema-left-out": "warning"}
    assert run("check", "old/trainer.pt").code == 0
    assert run("check", "other.safetensors", "--target", "x.ckpt.yaml").code == 0
    assert run("check", "y.pt", "--json").json["target"] == "x.ckpt.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[contracts", "no TOML"),
        ("ignroe = []", "meant: ignore"),
        ("ignore = 'x'", "list of texts"),
        ("ignore = ['optimiser-shipped']", "meant: optimizer-shipped"),
        ("severity = {all-zero = 'fatal'}", "one of error, warning, note"),
        ("severity = {all-zeros = 'note'}", "meant: all-zero"),
        ("contracts = 3", "contracts is a table"),
        ("contracts = {x = 3}", "is a path"),
        ("paths = {'*.pt' = 3}", "is a table"),
        ("[paths.'*.pt']\nalow-missing = []", "meant: allow-missing"),
        ("x = " + "[" * 5000, "TOML"),
    ],
)
def test_mistakes_in_settings(folder: Path, run: Run, text: str, said: str) -> None:
    Path(".ckptkit.toml").write_text(text, "utf-8")
    done = run("check", "x.safetensors")
    assert done.code == 2
    assert "error[configuration-invalid]" in done.stderr
    assert said in done.stderr


def test_all_finds_what_a_setting_names_and_is_gone(folder: Path, run: Run) -> None:
    Path(".ckptkit.toml").write_text('[contracts]\n"y*.pt" = "x.ckpt.yaml"\n', "utf-8")
    assert run("check", "--all").stdout.count("fits") == 2
    Path("y.pt").unlink()
    done = run("check", "--all")
    assert done.code == 2
    assert "y*.pt" in done.stderr


def test_nothing_to_check_is_said(folder: Path, run: Run) -> None:
    Path("sub").mkdir()
    Path("sub/config.json").write_text("{}", "utf-8")
    assert run("check", "sub/config.json").stdout.startswith("nothing to check")
    assert run("check", "sub/config.json", "--json").json == []


def test_plugins_are_left_alone_where_asked(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def refuse(**_: object) -> list[object]:
        raise AssertionError("plugins were looked for")

    monkeypatch.setattr(importlib.metadata, "entry_points", refuse)
    Path("noise.pt").write_bytes(bytes(range(1, 200)))
    assert "error[internal]" in run("check", "noise.pt").stderr
    for command in ("check", "scan"):
        assert "error[internal]" not in run(command, "noise.pt", "--no-plugins").stderr
    assert "error[internal]" in run("check", "noise.pt").stderr


def test_git_must_be_there_for_what_is_staged(folder: Path, run: Run) -> None:
    done = run("check", "x.safetensors", "--staged")
    assert done.code == 2
    assert "error[git-failed]" in done.stderr


def test_all_and_a_target_exclude_each_other(folder: Path, run: Run) -> None:
    done = run("check", "--all", "--target", "y.pt")
    assert done.code == 2
    assert "no --target" in done.stderr


def test_all_finds_in_folders_below_what_a_pattern_names(folder: Path, run: Run) -> None:
    Path("weights/old").mkdir(parents=True)
    shutil.copy("y.pt", "weights/old/z.pt")
    Path(".ckptkit.toml").write_text('[contracts]\n"weights/*.pt" = "x.ckpt.yaml"\n', "utf-8")
    assert run("check", "weights/old/z.pt", "--json").json["target"] == "x.ckpt.yaml"
    assert "weights/old/z.pt" in run("check", "--all").stdout


def test_what_a_contract_names_outside_its_folder_is_told_with_the_contract(folder: Path, run: Run) -> None:
    text = Path("x.ckpt.yaml").read_text("utf-8")
    Path("out.ckpt.yaml").write_text(text.replace("x.safetensors", "../x.safetensors"), "utf-8")
    done = run("check", "out.ckpt.yaml")
    assert done.code == 2
    assert "error[outside-folder]" in done.stderr
    files = f'files:\n  "../x": {{sha256: {"0" * 64}, size: 1}}\n'
    Path("out.ckpt.yaml").write_text(text + files, "utf-8")
    done = run("check", "x.safetensors", "--target", "out.ckpt.yaml")
    assert done.code == 2
    assert done.stderr.rstrip().endswith("out.ckpt.yaml")


def test_a_contract_of_no_architecture_says_which_was_meant(folder: Path, run: Run) -> None:
    done = run("contract", "resnet500")
    assert done.code == 2
    assert "meant: resnet50" in done.stderr
