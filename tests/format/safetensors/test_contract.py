"""safetensors files satisfy what every format must."""

from ckptkit.format.registry import named
from ckptkit.testing import FormatContract
from tests.support import ROOT

GOOD = ROOT / "fixtures" / "good" / "safetensors"


class TestSafetensors(FormatContract):
    format = named("safetensors")
    examples = tuple(GOOD / f"{name}.safetensors" for name in ("dtypes", "tied", "scalar_and_empty", "names"))
