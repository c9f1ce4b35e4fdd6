"""ONNX models satisfy what every format must."""

from ckptkit.format.registry import named
from ckptkit.testing import FormatContract
from tests.support import ROOT

GOOD = ROOT / "fixtures" / "good" / "onnx"
NAMES = ("raw", "typed", "typed_split", "everywhere", "empty_tensors", "external", "external_tied")


class TestOnnx(FormatContract):
    format = named("onnx")
    examples = tuple(GOOD / f"{name}.onnx" for name in NAMES)
    write_sample = False
