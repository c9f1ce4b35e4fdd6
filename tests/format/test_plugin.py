"""A plugin format works everywhere without a change to ckptkit, and the contract notices what is wrong with one."""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import ckptkit as ck
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.testing import FormatContract, sample, write
from tests.format import raw_plugin

RAW = raw_plugin.RAW


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    return write(raw_plugin.layout(sample(folder), "small.raw", WriteOptions()), folder)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="raw", value="raw_plugin:RAW", load=lambda: RAW)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "ckptkit.formats" else [])


@pytest.mark.usefixtures("installed")
class TestRaw(FormatContract):
    format = RAW

    @pytest.fixture(autouse=True)
    def _examples(self, example: Path) -> None:
        type(self).examples = (example,)

    def test_what_is_written_reads_back_equal(self, tmp_path: Path) -> None:
        """But for the tie, which this format cannot keep: the contract says so."""
        with pytest.raises(AssertionError):
            super().test_what_is_written_reads_back_equal(tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_plugin_is_read_written_and_listed(example: Path, tmp_path: Path) -> None:
    assert ck.read(example).origin.format == "raw"
    assert "raw" in [info.name for info in ck.formats()]
    ck.convert(example, tmp_path / "x.safetensors")
    ck.convert(tmp_path / "x.safetensors", tmp_path / "y.raw")
    back, first = ck.read(tmp_path / "y.raw"), ck.read(example)
    assert sorted(back) == sorted(first)
    assert all(back[name].tobytes() == first[name].tobytes() for name in first)


def broken(monkeypatch: pytest.MonkeyPatch, **changes: object) -> type[FormatContract]:
    """The contract of a format whose module differs in some functions."""
    module = SimpleNamespace(**{**vars(raw_plugin), **changes})
    monkeypatch.setitem(sys.modules, "broken_plugin", module)  # type: ignore[arg-type]
    return type("Broken", (FormatContract,), {"format": replace(RAW, module="broken_plugin")})


def short(path: str, options: ReadOptions) -> TensorGraph:
    """Takes one element too many of the last tensor: it ends behind the file."""
    graph = raw_plugin.read(path, options)
    name = list(graph)[-1]
    last = graph[name]
    return replace(
        graph, tensors={**graph.tensors, name: replace_shape(last, (*last.shape[:-1], last.shape[-1] + 1))}
    )


def replace_shape(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor(tensor.dtype, shape, tensor.file, tensor.offset)


def careless(path: str, options: ReadOptions) -> TensorGraph:
    try:
        return raw_plugin.read(path, options)
    except ck.CkptError as error:
        raise ValueError(error.message) from error


def unsure(path: str, options: ReadOptions) -> TensorGraph:
    graph = raw_plugin.read(path, options)
    unsure.calls += 1  # type: ignore[attr-defined]
    return graph if unsure.calls % 2 else graph.select(list(graph)[::-1])  # type: ignore[attr-defined]


unsure.calls = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("read", "test"),
    [
        (short, "test_reading_gives_tensors_that_keep_their_promises"),
        (careless, "test_a_damaged_file_is_refused_or_read_but_nothing_else"),
        (unsure, "test_reading_twice_gives_the_same"),
    ],
)
def test_the_contract_notices_a_bad_reader(
    monkeypatch: pytest.MonkeyPatch,
    example: Path,
    tmp_path: Path,
    read: Callable[[str, ReadOptions], TensorGraph],
    test: str,
) -> None:
    contract = broken(monkeypatch, read=read)
    contract.examples = (example,)
    arguments = (tmp_path,) if "damaged" in test else ()
    with pytest.raises((AssertionError, ValueError, ck.CkptError)):
        getattr(contract(), test)(*arguments)
    # The same test is content with the good reader.
    contract.format = RAW
    getattr(contract(), test)(*arguments)


def test_the_contract_notices_a_format_that_claims_everything(tmp_path: Path) -> None:
    contract = type("Greedy", (FormatContract,), {"format": replace(RAW, matches=lambda head: True)})
    with pytest.raises(AssertionError):
        contract().test_other_files_are_not_claimed(tmp_path, "text")
