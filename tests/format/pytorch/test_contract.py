"""PyTorch files of every container satisfy what every format must."""

from ckptkit.format.registry import named
from ckptkit.testing import FormatContract
from tests.support import ROOT

GOOD = ROOT / "fixtures" / "good" / "pytorch"
NAMES = (
    "zip-torch-1.6.pt",
    "zip-big-endian.pt",
    "zip-deflated.pt",
    "legacy.pth",
    "tar.pth",
    "torchscript.pt",
    "export.pt2",
)


class TestPyTorch(FormatContract):
    format = named("pytorch")
    examples = tuple(GOOD / name for name in NAMES)
