"""Rules given as text on the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

import ckptkit as ck
from tests.house import samples
from tests.support import Result


def test_rules_on_the_command_line(tmp_path: Path, run: Callable[..., Result]) -> None:
    path = samples.safetensors(tmp_path / "x.safetensors")
    out = tmp_path / "y.safetensors"
    rules = '[{from: fc.weight, to: "{{odd}}.weight", ops: [transpose]}, {tie: again, to: fc.bias}]'
    assert run("convert", path, out, "--rules", rules, "-q").code == 0
    made = ck.read(out)
    assert {name: tensor.shape for name, tensor in made.items()} == {
        "{odd}.weight": (3, 2),
        "fc.bias": (2,),
        "again": (2,),
    }
    one = run("convert", path, tmp_path / "z.safetensors", "--rules", "{from: fc.bias, to: b}", "-q")
    assert one.code == 0
    assert set(ck.read(tmp_path / "z.safetensors")) == {"fc.weight", "b"}


@pytest.mark.parametrize(
    "text", ["{from: a", "[{drop: a}", "{from: a, too: b}", "{", "[a]", "{x: !!python/name:os.system}"]
)
def test_mistakes_in_rules_on_the_command_line(text: str) -> None:
    with pytest.raises(ck.CkptError) as caught:
        ck.Rules.load(text)
    assert caught.value.code == "rule-invalid"
    assert str(caught.value.where).startswith(text)
