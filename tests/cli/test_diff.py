"""`ckptkit diff`, seen from outside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptkit.cli import difftext
from ckptkit.cli.text import Terminal
from ckptkit.verbs.diff import diff
from tests.house import samples
from tests.support import Result

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    base: dict[str, Any] = {"embed.weight": rng.standard_normal((16, 4)).astype(np.float32)}
    for layer in range(8):
        at = f"layers.{layer}."
        base |= {f"{at}attn.{p}.weight": rng.standard_normal((4, 4)).astype(np.float32) for p in "qkv"}
        base[f"{at}norm.weight"] = np.ones(4, np.float32)
    tuned = dict(base)
    for layer in (6, 7):
        for p in "qv":
            tuned[f"layers.{layer}.attn.{p}.weight"] = base[f"layers.{layer}.attn.{p}.weight"] + np.float32(
                1e-3
            )
    tuned["head.weight"] = np.zeros((2, 4), np.float32)
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_answer_first_then_what_was_trained(folder: Path, run: Run) -> None:
    done = run("diff", "base.safetensors", "tuned.safetensors")
    assert done.code == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "different   33 tensors in both: 29 equal, 4 changed · 1 only in tuned.safetensors"
    assert (
        lines[1]
        == "frozen      embed.weight, layers.{0..5}, layers.{6,7}.attn.k.weight, layers.{6,7}.norm.weight"
    )
    assert lines[2] == "trained     layers.{6,7}.attn.{q,v}.weight"
    assert lines[3].split() == ["changed", "max", "|Δ|", "max", "rel", "rms", "Δ", "cosine", "share"]
    cells = lines[4].split()
    assert cells[:6] == ["layers.{6,7}.attn.{q,v}.weight", "×4,", "12", "equal", "0.001", cells[5]]
    assert lines[5:] == ["only in tuned.safetensors", "  head.weight  float32  2×4"]


def test_equal_is_one_line_and_exit_code_0(folder: Path, run: Run) -> None:
    done = run("diff", "base.safetensors", "base.safetensors")
    assert (done.code, done.stdout) == (0, "equal       33 tensors in both: all equal\n")
    assert (
        run("diff", "base.safetensors", "tuned.safetensors", "--exclude", "head*", "--atol", "0.01").code == 0
    )
    near = run("diff", "base.safetensors", "tuned.safetensors", "--atol", "0.01")
    assert "tolerance   |a − b| ≤ 0.01 + 0·|b|" in near.stdout


@pytest.mark.parametrize("bad", ["nan", "-1", "inf"])
@pytest.mark.parametrize("option", ["--rtol", "--atol"])
def test_a_tolerance_that_means_nothing_is_refused(folder: Path, run: Run, option: str, bad: str) -> None:
    done = run("diff", "base.safetensors", "base.safetensors", option, bad, "--json")
    assert (done.code, done.json["code"]) == (2, "bad-tolerance")


def test_headers_alone(folder: Path, run: Run) -> None:
    done = run("diff", "base.safetensors", "tuned.safetensors", "--no-values", "--exclude", "head*")
    assert (done.code, done.stdout) == (0, "alike       33 tensors in both: all alike in their headers\n")
    assert run("diff", "base.safetensors", "tuned.safetensors", "--no-values").code == 1


def test_what_was_left_out_is_named(folder: Path, run: Run) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    torch.save({"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}, "t.pt")
    lines = run("diff", "t.pt", "t.pt").stdout.splitlines()
    assert lines == ["equal       1 tensor in both: 1 equal", "left out    ema (--section all)"]
    assert run("diff", "t.pt", "t.pt", "--section", "all").stdout.count("\n") == 1
    assert run("diff", "t.pt", "t.pt", "--json").json["a"]["left_out"] == ["ema"]


def test_stat_has_a_line_per_group_of_modules(folder: Path, run: Run) -> None:
    lines = run("diff", "base.safetensors", "tuned.safetensors", "--stat").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[4:]}
    assert rows["layers.{0..5}.attn.{k,q,v}"] == ["18"]
    assert rows["layers.{6,7}.attn.{q,v}"] == ["4", "0.001"]
    assert rows["head"] == ["1"]


def test_sorting_by_the_size_of_the_change(folder: Path, run: Run) -> None:
    a = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.int16), "c": np.zeros(5, np.float64)}
    save_file(a, "a.safetensors")
    save_file({"a": a["a"] + 1, "b": a["b"] + 3, "c": a["c"] + 2}, "b.safetensors")

    def order(*options: str) -> list[str]:
        lines = run("diff", "a.safetensors", "b.safetensors", *options).stdout.splitlines()
        return [line.split()[0] for line in lines if line.startswith("  ")]

    assert order("--sort", "change") == ["b", "c", "a"]
    assert order("--sort", "name") == ["a", "b", "c"]


def test_remarks(folder: Path, run: Run) -> None:
    a = np.ones(4, np.float32)
    odd = np.array([1, np.nan, np.inf, 1], np.float32)
    turned = np.arange(6.0).reshape(2, 3)
    before = {"cast": a, "shape": a, "odd": a, "zero": a * 0, "raw": np.ones(2, np.int8), "turned": turned}
    after = {
        "cast": a.astype(np.float16),
        "shape": np.ones((3, 3), np.float32),
        "odd": odd,
        "zero": -(a * 0),
        "raw": np.ones(2, np.int8),
        "turned": np.ascontiguousarray(turned.T),
    }
    save_file(before, "a.safetensors")
    save_file(after, "b.safetensors")
    text = run("diff", "a.safetensors", "b.safetensors").stdout
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert rows["cast"].endswith("float32 → float16, equal values")
    assert "4 → 3×3" in rows["shape"]
    assert rows["odd"].endswith("NaN 0 → 1  Inf 0 → 1")
    assert rows["zero"].endswith("same numbers, other bits")
    assert rows["turned"].endswith("2×3 → 3×2  = transpose(·)")


def test_other_weights_are_said_to_be_so(folder: Path, run: Run) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        rng = np.random.default_rng(seed)
        save_file(
            {f"w{k}": rng.standard_normal((30, 7)).astype(np.float32) for k in range(5)},
            f"{name}.safetensors",
        )
    assert "other weights" in run("diff", "a.safetensors", "b.safetensors").stdout
    assert "other weights" not in run("diff", "base.safetensors", "tuned.safetensors").stdout


def test_renamed_weights_are_said_to_be_the_same(folder: Path, run: Run) -> None:
    rng = np.random.default_rng(3)
    parts = {f"h.{k}.{p}": rng.standard_normal((4, 6)).astype(np.float32) for k in range(3) for p in "qkv"}
    fused = {f"l.{k}.qkv": np.concatenate([parts[f"h.{k}.{p}"] for p in "qkv"]) for k in range(3)}
    save_file(parts, "a.safetensors")
    save_file(fused, "b.safetensors")
    there, back = run("diff", "a.safetensors", "b.safetensors"), run("diff", "b.safetensors", "a.safetensors")
    assert there.code == back.code == 1
    head = "different   the same weights · {} under other names or in other layouts"
    assert there.stdout.splitlines() == [
        head.format(3),
        "renamed",
        "  h.{0..2}.{q,k,v} → l.{0..2}.qkv  concat  ×3",
    ]
    rows = back.stdout.splitlines()
    assert rows[0] == head.format(9)
    assert sorted(rows[2:])[0] == "  l.{0..2}.qkv → h.{0..2}.k  slice ·[4:8]  ×3"
    save_file({**parts, "more": np.arange(5.0)}, "c.safetensors")
    assert "all weights of A are in B" in run("diff", "a.safetensors", "c.safetensors").stdout
    assert "all weights of B are in A" in run("diff", "c.safetensors", "b.safetensors").stdout
    document = run("diff", "--json", "a.safetensors", "b.safetensors").json
    assert [r["from"] for r in document["renamed"]] == [[f"h.{k}.{p}" for p in "qkv"] for k in range(3)]
    assert {(r["how"], r["certain"]) for r in document["renamed"]} == {("concat", True)}
    lines = run("diff", "--lines", "a.safetensors", "b.safetensors").stdout
    assert "renamed\tl.0.qkv\tconcat\th.0.q\th.0.k\th.0.v\n" in lines


def test_a_prefix_is_told_in_one_line_with_the_rule_for_it(folder: Path, run: Run) -> None:
    run("convert", "base.safetensors", "wrapped.safetensors", "--rules", "add:module.")
    lines = run("diff", "wrapped.safetensors", "base.safetensors").stdout.splitlines()
    assert lines[:4] == [
        "different   the same weights · 33 under other names or in other layouts",
        "hint        --rules strip:module. compares them under the same names",
        "renamed",
        "  module.* → *  same bytes  ×33",
    ]
    assert run("diff", "wrapped.safetensors", "base.safetensors", "--rules", "strip:module.").code == 0
    back = run("diff", "base.safetensors", "wrapped.safetensors").stdout
    assert "--rules add:module." in back
    assert "  * → module.*  same bytes  ×33" in back


def test_json_holds_everything(folder: Path, run: Run) -> None:
    done = run("diff", "--json", "base.safetensors", "tuned.safetensors")
    found = done.json
    assert (done.code, found["schema"], found["verdict"], found["identical"]) == (
        1,
        "ckptkit.diff/1",
        "different",
        29,
    )
    assert (found["added"], found["removed"], found["renamed"], found["other"]) == (
        ["head.weight"],
        [],
        [],
        [],
    )
    names = [entry["name"] for entry in found["changed"]]
    assert names == sorted(f"layers.{i}.attn.{p}.weight" for i in (6, 7) for p in "qv")
    entry = found["changed"][0]
    assert (entry["kinds"], entry["how"]) == (["values"], "")
    assert entry["a"] == entry["b"] == {"dtype": "float32", "shape": [4, 4], "tied_to": None, "layout": ""}
    assert set(entry["values"]) >= {"max_abs", "max_rel", "rms", "cosine", "changed", "size", "nan", "inf"}
    failed = run("diff", "--json", "base.safetensors", "missing.pt")
    assert (failed.code, failed.json["schema"], failed.json["code"]) == (2, "ckptkit.error/1", "not-found")


def test_json_writes_what_is_not_finite_as_strings(folder: Path, run: Run) -> None:
    save_file({"x": np.array([1.7e308])}, "a.safetensors")
    save_file({"x": np.array([-1.7e308])}, "b.safetensors")
    (entry,) = run("diff", "--json", "a.safetensors", "b.safetensors").json["changed"]
    assert entry["values"]["max_abs"] == "inf"


def test_markdown_for_a_comment(folder: Path, run: Run) -> None:
    text = run("diff", "base.safetensors", "tuned.safetensors", "--format", "markdown").stdout
    assert text.startswith("### different: `base.safetensors` → `tuned.safetensors`\n")
    assert "- trained: `layers.{6,7}.attn.{q,v}.weight`" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any(row.startswith("| `layers.{6,7}.attn.{q,v}.weight` | ×4, 12 equal | 0.001 |") for row in rows)
    tables: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(line.replace("\\|", ""))
        elif tables[-1]:
            tables.append([])
    assert all(len({row.count("|") for row in table}) == 1 for table in tables if table)


def test_lines_for_programs(folder: Path, run: Run) -> None:
    done = run("diff", "--lines", "base.safetensors", "tuned.safetensors")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 34
    assert ["added", "head.weight", "-", "-", "float32[2,4]", "-"] in rows
    (changed,) = [row for row in rows if row[1] == "layers.6.attn.q.weight"]
    assert changed[:5] == ["changed", "layers.6.attn.q.weight", "values", "float32[4,4]", "float32[4,4]"]
    assert float(changed[5]) == pytest.approx(1e-3, rel=1e-3)


def test_formats_meet(folder: Path, run: Run) -> None:
    for name, make in (
        ("x.pt", samples.pytorch),
        ("x.onnx", samples.onnx),
        ("x.safetensors", samples.safetensors),
    ):
        make(Path(name))
    assert run("diff", "x.pt", "x.safetensors").code == 0
    done = run("diff", "x.pt", "x.onnx")
    assert (done.code, done.stdout.splitlines()[0]) == (0, "equal       2 tensors in both: all equal")


def test_names_from_a_file_cannot_reach_the_terminal(folder: Path, run: Run) -> None:
    save_file({"a\x1b[31m": np.zeros(2, np.float32), "m\n.x": np.zeros(2, np.float32)}, "a.safetensors")
    save_file(
        {"b\x1b[2J": np.ones(2, np.float32), "m\n.x": np.ones(2, np.float32)},
        "b.safetensors",
        {"\x1b": "\x07"},
    )
    for style in ("text", "markdown", "lines"):
        for more in ([], ["--stat"]):
            text = run("diff", "a.safetensors", "b.safetensors", "--format", style, *more).stdout
            assert text.replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_lines_fit_the_terminal(folder: Path, width: int) -> None:
    found = diff("base.safetensors", "tuned.safetensors")
    for stat in (False, True):
        for line in difftext.text(found, Terminal(width), sort="file", stat=stat):
            assert len(line) <= width


def test_names_with_bars_and_backticks_stay_in_their_cells(folder: Path, run: Run) -> None:
    for name, value in (("a", 0), ("b", 1)):
        save_file(
            {"x|y": np.full(2, value), "p`|q": np.full(3, value, np.int8), "z": np.ones(1)},
            f"{name}.safetensors",
        )
    text = run("diff", "a.safetensors", "b.safetensors", "--format", "markdown").stdout
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "| `x\\|y` |" in text


def test_backslashes_in_lines_read_back(folder: Path, run: Run) -> None:
    for name, value in (("a", 0), ("b", 1)):
        save_file({"t\t": np.full(2, value), "t\\t": np.full(2, value)}, f"{name}.safetensors")
    rows = run("diff", "a.safetensors", "b.safetensors", "--lines").stdout.splitlines()
    assert sorted(row.split("\t")[1] for row in rows) == ["t\\\\t", "t\\t"]
