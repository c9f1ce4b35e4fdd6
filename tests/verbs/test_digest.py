"""digest: one identity in every format, and saved digests that are checked."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import ckptkit as ck
from ckptkit.match.digest import combine, tensor_digest
from ckptkit.verbs.digest import check
from ckptkit.verbs.digest.listing import Listed, line, load

Arrays = dict[str, Any]


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((5, 4)).astype(np.float32),
        "a.bias": rng.standard_normal(5).astype(np.float16),
        "steps": np.array(3, np.int64),
        "mask": np.array([True, False]),
        "none": np.zeros((0, 2), np.float32),
    }


@pytest.fixture
def source(tmp_path: Path, arrays: Arrays) -> Path:
    save_file(arrays, tmp_path / "source.safetensors", {"format": "pt"})
    return tmp_path / "source.safetensors"


def test_it_is_the_digest_of_each_tensor_and_of_all(source: Path) -> None:
    graph = ck.read(source)
    found = ck.digest(graph)
    assert dict(found.tensors) == {name: tensor_digest(tensor) for name, tensor in graph.items()}
    assert str(found) == found.digest == combine(found.tensors)
    assert ck.digest(source) == found
    assert pickle.loads(pickle.dumps(found)) == found


def test_formats_order_and_strides_do_not_count(source: Path, tmp_path: Path, arrays: Arrays) -> None:
    expected = ck.digest(source).digest
    for target, options in {"x.pt": {}, "shards": {"to": "safetensors", "max_shard_size": 100}}.items():
        ck.convert(source, tmp_path / target, **options)
        assert ck.digest(tmp_path / target).digest == expected, target
    save_file(dict(reversed(arrays.items())), tmp_path / "y.safetensors", {"other": "metadata"})
    assert ck.digest(tmp_path / "y.safetensors").digest == expected
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    turned = {n: torch.from_numpy(a.T.copy()).permute(tuple(range(a.ndim))[::-1]) for n, a in arrays.items()}
    torch.save(turned, tmp_path / "turned.pt")
    assert ck.digest(tmp_path / "turned.pt").digest == expected


def test_onnx_initializers_have_the_digest_of_what_they_hold(tmp_path: Path, arrays: Arrays) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    helper = onnx.helper
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    typed = helper.make_tensor("a.bias", onnx.TensorProto.FLOAT16, [5], arrays["a.bias"].tolist())
    for variant in (weights, [typed if w.name == "a.bias" else w for w in weights]):
        onnx.save(helper.make_model(helper.make_graph([], "g", [], [], variant)), tmp_path / "x.onnx")
        save_file(arrays, tmp_path / "x.safetensors")
        assert ck.digest(tmp_path / "x.onnx").digest == ck.digest(tmp_path / "x.safetensors").digest


def test_names_count_unless_they_are_not_asked_for(source: Path, tmp_path: Path, arrays: Arrays) -> None:
    save_file({f"module.{name}": array for name, array in arrays.items()}, tmp_path / "wrapped.safetensors")
    plain, wrapped = ck.digest(source), ck.digest(tmp_path / "wrapped.safetensors")
    assert plain.digest != wrapped.digest
    assert plain.nameless == wrapped.nameless
    assert ck.digest(source, exclude=["steps"]).nameless != plain.nameless


def test_tied_tensors_count_under_each_name_in_every_format(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    shared = torch.arange(4.0)
    torch.save({"a": shared, "b": shared}, tmp_path / "tied.pt")
    torch.save({"a": shared, "b": shared.clone()}, tmp_path / "free.pt")
    ck.convert(tmp_path / "tied.pt", tmp_path / "tied.safetensors")
    assert len({ck.digest(tmp_path / n).digest for n in ("tied.pt", "free.pt", "tied.safetensors")}) == 1


def test_progress_ends_at_all_bytes(source: Path) -> None:
    seen: list[tuple[int, int]] = []
    ck.digest(source, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (ck.read(source).nbytes,) * 2


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.lists(st.tuples(TEXT.filter(len), st.none() | TEXT), min_size=1), st.binary(min_size=32, max_size=32)
)
def test_a_listing_reads_back_whatever_the_names(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str | None]], digest: bytes
) -> None:
    path = tmp_path_factory.mktemp("listings") / "saved"
    path.write_text("".join(line(p, n, digest.hex()) + "\n" for p, n in rows), "utf-8", newline="")
    assert load(str(path)).listed == [Listed(p, n, digest.hex()) for p, n in rows]


def test_a_receipt_and_json_are_listings_too(source: Path, tmp_path: Path, arrays: Arrays) -> None:
    target = tmp_path / "out.pt"
    ck.convert(source, target, receipt=tmp_path / "receipt.json")
    saved = load(str(tmp_path / "receipt.json")).listed
    assert {item.path for item in saved} == {str(target)}
    assert {item.name for item in saved} == {None, *arrays}
    found = ck.digest(target)
    assert {
        r.status for r in check(saved, lambda path: (ck.digest(path).digest, ck.digest(path).tensors))
    } == {"ok"}
    document = {
        "schema": "ckptkit.digest/1",
        "path": str(target),
        "digest": found.digest,
        "tensors": found.tensors,
    }
    (tmp_path / "d.json").write_text(json.dumps([document, document]))
    assert len(load(str(tmp_path / "d.json")).listed) == 2 * len(saved)


def test_every_outcome_of_a_check() -> None:
    saved = [Listed("x", None, "1"), Listed("x", "a", "2"), Listed("x", "b", "3"), Listed("y", None, "4")]

    def compute(path: str) -> tuple[str, dict[str, str]]:
        if path == "y":
            raise ck.CkptError("not-found", "no such file", path)
        return "1", {"a": "9"}

    found = list(check(saved, compute))
    assert [(r.path, r.name, r.status) for r in found] == [
        ("x", None, "ok"),
        ("x", "a", "failed"),
        ("x", "b", "missing"),
        ("y", None, "unread"),
    ]
    assert found[-1].error is not None


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "not a digest\n", "ab  x\n", f"{'0' * 64} x\n", f"{'G' * 64}  x\n", "{}", "[]", "[1]",
     '{"schema": "other/1"}', '{"schema": "ckptkit.convert/1", "target": "x", "digest": null, "tensors": []}',
     "[" * 100_000, "\xff"],
)  # fmt: skip
def test_what_is_no_listing_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "saved").write_bytes(text.encode("latin-1"))
    with pytest.raises(ck.CkptError) as caught:
        load(str(tmp_path / "saved"))
    assert caught.value.code == "listing-invalid"
