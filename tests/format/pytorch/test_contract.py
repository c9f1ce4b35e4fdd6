"""PyTorch files of every container satisfy what every format must."""

from ckptkit.format.registry import named
from ckptkit.testing import FormatContract
from tests.support import ROOT

GOOD = ROOT / "fixtures" / "good" / "pytorch"


class TestPyTorch(FormatContract):
    format = named("pytorch")
    examples = tuple(
        GOOD / name
        for name in (
            "zip-torch-2.7.pt",
            "zip-deflated.pt",
            "zip-big-endian.pt",
            "legacy.pth",
            "tar.pth",
            "torchscript.pt",
            "export.pt2",
        )
    )
