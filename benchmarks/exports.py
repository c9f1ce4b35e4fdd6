"""Weights put into what torch's exporters make of well-known architectures in full size, judged by fresh exports.

`python benchmarks/exports.py [NET…]` makes, for each architecture and each way to export it, a base and a tuned
checkpoint with random weights and both their exports, and puts the tuned weights into the base's graph. A row says how
many weights of the checkpoint have found their place, how the outputs compare with those of the fresh export (greatest
difference relative to the greatest output), whether the base's weights give its file again, and the seconds taken.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnxruntime
import torch

import ckptkit
from ckptkit.match.transplant import transplant
from tests.nets import EXPORTS, NETS, export, shaken


def outputs(model: Path, inputs: Any) -> list[Any]:
    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: inputs.numpy()}))


def row(folder: Path, base: Any, inputs: Any, how: str) -> str:
    into = {"into": folder / "base.onnx", "exported_from": folder / "base.pt"}
    read = [ckptkit.read(str(folder / name)) for name in ("tuned.pt", "base.onnx", "base.pt")]
    done = transplant(*read)
    wanted = {name for name, tensor in base.state_dict().items() if tensor.dtype.is_floating_point}
    placed = wanted & {name for weight in done.weights for name in weight.sources}
    start = time.perf_counter()
    ckptkit.convert(folder / "tuned.pt", folder / "new.onnx", **into)
    seconds = time.perf_counter() - start
    ckptkit.convert(folder / "base.pt", folder / "back.onnx", **into)
    pairs = zip(outputs(folder / "new.onnx", inputs), outputs(folder / "fresh.onnx", inputs), strict=True)
    off = max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)
    back = (folder / "back.onnx").read_bytes() == (folder / "base.onnx").read_bytes()
    folds = sum(weight.operation.startswith(("fold", "transpose(fold")) for weight in done.weights)
    return (
        f"{how:22s} {len(placed):4d} of {len(wanted):4d} weights, {folds:3d} folds, outputs within {off:.1e}, "
        f"base {'the same' if back else 'DIFFERENT'}, {seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", metavar="NET", help=", ".join(NETS))
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    for net in parser.parse_args().nets or NETS:
        (base, sample), (tuned, _) = NETS[net](True), NETS[net](True)
        inputs = sample()
        print(f"\n{net}")
        for how in EXPORTS:
            with tempfile.TemporaryDirectory() as work:
                folder = Path(work)
                for module, checkpoint, model in (
                    (shaken(base, 0), "base", "base"),
                    (shaken(tuned, 1), "tuned", "fresh"),
                ):
                    torch.save(module.state_dict(), folder / f"{checkpoint}.pt")
                    with contextlib.redirect_stdout(io.StringIO()):
                        export(module, inputs, folder / f"{model}.onnx", how)
                print(f"  {row(folder, base, inputs, how)}", flush=True)


if __name__ == "__main__":
    main()
