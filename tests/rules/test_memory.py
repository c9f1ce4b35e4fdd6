"""What a plan promises: no operation takes more memory than its bound, by more than a process's own noise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ckptkit.rules.operations import JOINS, OPERATIONS, SPLITS
from tests.support import ROOT

MEGABYTE = 1 << 20
SLACK = 32 * MEGABYTE
ROWS, COLUMNS = 6144, 4096  # 96 MiB of float32

MANY, TWO = {"over": "i", "dim": 0}, ["m.0", "m.1"]
ONE: dict[str, Any] = {
    "reshape": {"reshape": [COLUMNS, ROWS]},
    "flatten": {"flatten": {"dim": 0, "sizes": [ROWS, COLUMNS]}},
    "unflatten": {"unflatten": {"dim": 0, "sizes": [2, -1]}},
    "squeeze": [{"unsqueeze": 0}, {"squeeze": 0}],
    "unsqueeze": {"unsqueeze": 1},
    "transpose": "transpose",
    "permute": [{"unflatten": {"dim": 1, "sizes": [64, 64]}}, {"permute": [2, 0, 1]}],
    "heads": {"heads": {"dim": 0, "view": [32, -1, 2], "order": [0, 2, 1]}},
    "blocks": {"blocks": {"dim": 1, "order": [2, 0, 1, 3]}},
    "flip": {"flip": 0},
    "slice": {"slice": {"dim": 1, "start": 1, "step": 2}},
    "gather": {"gather": {"dim": 0, "index": [5, 1, 4000]}},
    "pad": {"pad": {"dim": 1, "after": 3}},
    "part": {"part": {"dim": 1, "start": 7, "ops": [{"multiply": 2}]}},
    "resize": {"resize": {"dims": [0], "to": [ROWS // 2], "mode": "linear"}},
    "resize_grid": {"resize_grid": {"dim": 0, "from": [64, 96], "to": [32, 96]}},
    "cast": {"cast": "bfloat16"},
    "multiply": {"multiply": 3},
    "divide": {"divide": 3},
    "add": {"add": 1},
    "subtract": {"subtract": 1},
} | {name: name for name in ("neg", "exp", "log", "sqrt", "square", "reciprocal", "abs")}


def rule(*ops: Any) -> list[dict[str, Any]]:
    return [{"from": "one", "to": "out", "ops": list(ops), "reads": ["one"]}]


def joined(name: str, args: dict[str, Any], reads: list[str], ops: Any = ()) -> list[dict[str, Any]]:
    return [{"from": reads, "to": "out", name: args, "ops": list(ops), "reads": reads}]


CASES = {name: rule(*(ops if isinstance(ops, list) else [ops])) for name, ops in ONE.items()}
CASES |= {
    "concat": joined("concat", {"dim": 1}, TWO),
    "stack": joined("stack", {"dim": 2}, TWO),
    "same": joined("same", {}, ["m.0", "m.2"]),
    "combine": joined("combine", {"with": "mean"}, TWO),
    "weight_norm": joined("weight_norm", {}, ["g", "one"]),
    "dequantize": joined("dequantize", {"block": [128, 128]}, ["fp8", "scale"]),
    "fold_weight": joined("fold_weight", {}, ["one", "v", "v1"]),
    "fold_bias": joined("fold_bias", {}, ["v", "v1", "v2", "v3"]),
    "split": [{"from": "one", "to": ["a", "b"], "split": {"dim": 1}, "reads": ["one"]}],
    "unstack": [{"from": "one", "to": "a.{i}", "unstack": {"over": "i", "dim": 1}, "reads": ["one"],
                 "ops": [{"reshape": [COLUMNS, 2, -1]}]}],
    # What can only be produced in order, and is then wanted in another.
    "transpose computed": rule("exp", "transpose"),
    "transpose cast": rule({"cast": "float16"}, "transpose", "neg"),
    "transpose joined": joined("concat", {"dim": 0}, TWO, ["transpose"]),
    "transpose stacked": joined("stack", {"dim": 1}, TWO, [{"permute": [2, 1, 0]}, {"add": 1}]),
    "transpose scaled": joined("weight_norm", {}, ["g", "one"], ["transpose"]),
    "split computed": [{"from": "one", "to": ["a", "b"], "split": {"dim": 1}, "ops": ["neg"], "reads": ["one"]}],
}  # fmt: skip


def test_every_operation_is_tried() -> None:
    assert {*OPERATIONS, *JOINS, *SPLITS} <= CASES.keys()


def test_no_operation_takes_more_memory_than_planned(tmp_path: Path) -> None:
    one = (np.arange(ROWS * COLUMNS, dtype="f4") % 1000).reshape(ROWS, COLUMNS)
    vectors = {name: np.ones(ROWS, "f4") for name in ("v", "v1", "v2", "v3")}
    arrays = {"one": one, "m.0": one[: ROWS // 2], "m.1": one[ROWS // 2 :], "m.2": one[: ROWS // 2].copy()}
    arrays |= {
        "g": np.ones((ROWS, 1), "f4"),
        "scale": np.ones((ROWS // 128, COLUMNS // 128), "f4"),
        **vectors,
    }
    arrays["fp8"] = np.ones((ROWS, COLUMNS), ml_dtypes.float8_e4m3fn)
    save_file(arrays, tmp_path / "in.safetensors")
    command = [sys.executable, "-m", "tests.rules.peaks", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(CASES), text=True, stdout=subprocess.PIPE, check=True
    )
    found = json.loads(done.stdout)
    over = {name: pair for name, pair in found.items() if pair[1] > pair[0] + SLACK}
    assert over == {}
