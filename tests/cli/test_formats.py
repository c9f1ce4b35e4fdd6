"""`ckptkit formats`, seen from outside."""

from collections.abc import Callable

import ckptkit as ck
from tests.support import Result


def test_every_format_is_listed(run: Callable[..., Result]) -> None:
    known = ck.formats()
    text = run("formats").stdout
    document = run("formats", "--json").json
    markdown = run("formats", "--format", "markdown").stdout
    assert document["schema"] == "ckptkit.formats/1"
    assert [row["name"] for row in document["formats"]] == [info.name for info in known]
    for info in known:
        assert f"{info.name}   {info.title}" in text
        assert f"| `{info.name}` |" in markdown
    assert {"safetensors", "pytorch", "onnx"} <= {info.name for info in known}
