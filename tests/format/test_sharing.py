"""Overlapping tensors are found, told as a loss, and copied or refused on request."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.plan import WriteOptions
from ckptkit.core.tensor import Tensor
from ckptkit.format import registry
from ckptkit.format.sharing import overlapping


def graph_of(runs: list[tuple[int, int]]) -> TensorGraph:
    """A graph of uint8 vectors: begin, length."""
    file = File("x", 1 << 20, 0, 0)
    tensors = {f"t{n}": Tensor(DTYPES["uint8"], (size,), file, begin) for n, (begin, size) in enumerate(runs)}
    return TensorGraph(tensors, Origin("x", "pytorch", files=(file,)))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=8))
def test_every_overlap_is_found_and_nothing_else(runs: list[tuple[int, int]]) -> None:
    graph = graph_of(runs)
    spans = {f"t{n}": set(range(b, b + s)) for n, (b, s) in enumerate(runs) if f"t{n}" not in graph.ties()}
    found = overlapping(graph)
    for name, other in found:
        assert spans[name] & spans[other]
    meeting = any(spans[a] & spans[b] for a in spans for b in spans if a < b)
    assert meeting == bool(found)


@pytest.mark.parametrize("name", ["safetensors", "pytorch"])
def test_a_transpose_and_a_slice_are_a_loss(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    base = torch.arange(12.0).reshape(3, 4)
    torch.save(
        {"w": base, "t": base.t(), "row": base[1], "tied": base, "own": torch.ones(2)}, tmp_path / "x.pt"
    )
    graph = ck.read(tmp_path / "x.pt")
    module = registry.named(name).load()
    (loss,) = module.layout(graph, "y", WriteOptions()).losses
    assert loss.code == "sharing-lost"
    assert module.layout(graph, "y", WriteOptions(ties="copy")).losses == ()
    with pytest.raises(ck.CkptError) as refusal:
        module.layout(graph.select(["w", "row"]), "y", WriteOptions(ties="error"))
    assert refusal.value.code == "tied-tensors"
    assert module.layout(graph.select(["w", "own"]), "y", WriteOptions(ties="error")).losses == ()


def test_disjoint_parts_of_one_storage_are_no_loss(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base[:1], "b": base[1:], "left": base[:, :2], "right": base[:, 2:]}, tmp_path / "x.pt")
    assert overlapping(ck.read(tmp_path / "x.pt")) == []
