"""convert: what is written equals what was read, what is lost is said first, and nothing is half-written."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptkit as ck
from ckptkit.match.digest import combine, tensor_digest

Arrays = dict[str, Any]


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "encoder.weight": rng.standard_normal((8, 4)).astype(np.float32),
        "encoder.norm.weight": rng.standard_normal(4).astype(np.float32),
        "encoder.steps": np.array(7, np.int64),
        "decoder.weight": rng.standard_normal((4, 8)).astype(np.float16),
        "decoder.mask": np.array([True, False]),
    }


@pytest.fixture
def source(tmp_path: Path, arrays: Arrays) -> Path:
    path = tmp_path / "source.safetensors"
    save_file(arrays, path, {"format": "pt", "origin": "test"})
    return path


def read_back(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in ck.read(path).items()}


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_same_format_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    receipt = ck.convert(source, tmp_path / "out.safetensors", verify=True)
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(source).keys()
    assert read_back(tmp_path / "out.safetensors") == read_back(source)
    assert ck.read(tmp_path / "out.safetensors").metadata == {"format": "pt", "origin": "test"}
    assert receipt.verified
    assert receipt.reference


def test_equal_input_gives_equal_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        ck.convert(source, tmp_path / name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_plan_touches_nothing(source: Path, tmp_path: Path) -> None:
    plan = ck.plan(source, tmp_path / "out.safetensors", dtype="float16")
    assert plan.cast == {"encoder.weight": "float32", "encoder.norm.weight": "float32"}
    assert plan.nbytes < source.stat().st_size
    assert left(tmp_path) == ["source.safetensors"]


def test_selection_renaming_casting_and_metadata(source: Path, arrays: Arrays, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    receipt = ck.convert(
        source,
        out,
        include=["encoder.*"],
        exclude=["*.steps"],
        rules=["strip:encoder.", "add:model."],
        dtype="float16",
        keep_dtype=["*norm*"],
        no_metadata=True,
        metadata={"note": "small"},
    )
    assert {k: v.dtype for k, v in load_file(out).items()} == {
        "model.weight": np.float16,
        "model.norm.weight": np.float32,
    }
    assert (load_file(out)["model.weight"] == arrays["encoder.weight"].astype(np.float16)).all()
    assert ck.read(out).metadata == {"format": "pt", "note": "small"}
    assert [(t.name, t.source, t.dtype, t.source_dtype) for t in receipt.tensors] == [
        ("model.norm.weight", "encoder.norm.weight", "float32", "float32"),
        ("model.weight", "encoder.weight", "float16", "float32"),
    ]
    assert "3 tensors by --include/--exclude" in receipt.left_out


def test_a_receipt_states_digests_that_hold(source: Path, tmp_path: Path) -> None:
    ck.convert(source, tmp_path / "out.safetensors", dtype="float16", receipt=tmp_path / "receipt.json")
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    digests = {name: tensor_digest(t) for name, t in ck.read(tmp_path / "out.safetensors").items()}
    assert {t["name"]: t["digest"] for t in receipt["tensors"]} == digests
    assert receipt["digest"] == combine(digests)
    assert receipt["schema"] == "ckptkit.convert/1"


def test_ties_are_kept_copied_or_refused(tmp_path: Path, arrays: Arrays) -> None:
    tied = tmp_path / "tied.safetensors"
    save_file({"embed": arrays["encoder.weight"]}, tied, {"head": "embed"})
    assert ck.read(tied).ties() == {"head": "embed"}
    receipt = ck.convert(tied, tmp_path / "keep.safetensors", receipt=tmp_path / "r.json")
    assert receipt.ties == {"head": "embed"}
    assert len({t.digest for t in receipt.tensors}) == 1
    assert list(load_file(tmp_path / "keep.safetensors")) == ["embed"]
    assert ck.read(tmp_path / "keep.safetensors").ties() == {"head": "embed"}
    ck.convert(tied, tmp_path / "cast.safetensors", dtype="bfloat16")
    assert ck.read(tmp_path / "cast.safetensors").ties() == {"head": "embed"}
    ck.convert(tied, tmp_path / "copy.safetensors", ties="copy")
    assert sorted(load_file(tmp_path / "copy.safetensors")) == ["embed", "head"]
    assert refused(tied, tmp_path / "error.safetensors", ties="error") == "tied-tensors"


def test_shards_go_into_a_folder_with_an_index(source: Path, tmp_path: Path) -> None:
    assert refused(source, tmp_path / "out.safetensors", max_shard_size=64) == "needs-folder"
    ck.convert(source, tmp_path / "out", max_shard_size=64, verify=True)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(source))
    assert len(set(index["weight_map"].values())) > 1
    assert read_back(tmp_path / "out") == read_back(source)
    ck.convert(tmp_path / "out", tmp_path / "joined.safetensors", verify=True)
    assert read_back(tmp_path / "joined.safetensors") == read_back(source)


def test_overflow_is_counted_and_stops_publication_unless_allowed(tmp_path: Path) -> None:
    source = tmp_path / "big.safetensors"
    save_file({"w": np.array([1.0, 1e6, -1e6, np.inf], np.float32)}, source)
    assert refused(source, tmp_path / "out.safetensors", dtype="float16") == "overflow"
    assert left(tmp_path) == ["big.safetensors"]
    receipt = ck.convert(source, tmp_path / "out.safetensors", dtype="float16", allow_loss=["overflow"])
    assert receipt.losses == {"overflow": 2}
    assert np.isinf(load_file(tmp_path / "out.safetensors")["w"]).tolist() == [False, True, True, True]


def test_scales_of_quantised_weights_are_not_cast(tmp_path: Path) -> None:
    source = tmp_path / "q.safetensors"
    arrays = {
        "l.qweight": np.zeros((4, 8), np.int32),
        "l.qzeros": np.zeros((1, 1), np.int32),
        "l.scales": np.ones((1, 8), np.float16),
        "norm": np.ones(8, np.float16),
    }
    save_file(arrays, source)
    plan = ck.plan(source, tmp_path / "out.safetensors", dtype="float32")
    assert set(plan.cast) == {"norm"}


def refused(source: Path, target: Path, **options: Any) -> str:
    """The code that convert refuses with; checks that it leaves everything as it was."""
    before = left(target.parent)
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(source, target, **options)
    assert left(target.parent) == before
    return caught.value.code


@pytest.mark.parametrize(
    ("target", "options", "code"),
    [
        ("out.safetensors", {"include": ["nope.*"]}, "no-match"),
        ("out.safetensors", {"keep_dtype": ["nope"], "dtype": "float16"}, "no-match"),
        ("out.safetensors", {"rules": ["strip:nope."]}, "rule-unmatched"),
        ("out.safetensors", {"rules": ["strip:encoder.norm.", "strip:encoder."]}, "name-collision"),
        ("out.safetensors", {"dtype": "int8"}, "dtype-unknown"),
        ("out.safetensors", {"to": "gguf"}, "format-unknown"),
        ("out.gguf", {}, "format-unknown"),
        ("out.onnx", {}, "graph-needed"),
        ("source.safetensors", {}, "target-is-source"),
        ("source.safetensors", {"overwrite": True}, "target-is-source"),
        ("absent/out.safetensors", {}, "not-found"),
        (".", {"overwrite": True}, "target-is-source"),
        ("out.safetensors", {"sidecar": "SOURCE"}, "target-is-source"),
        ("out.safetensors", {"receipt": "SOURCE", "overwrite": True}, "target-is-source"),
        ("out.safetensors", {"sidecar": "TARGET"}, "target-twice"),
    ],
)
def test_refusals(source: Path, tmp_path: Path, target: str, options: dict[str, Any], code: str) -> None:
    named = {"SOURCE": source, "TARGET": tmp_path / target}
    options = {
        key: named.get(value, value) if isinstance(value, str) else value for key, value in options.items()
    }
    before = source.read_bytes()
    place = tmp_path / target
    if not place.parent.exists():
        with pytest.raises(ck.CkptError) as caught:
            ck.convert(source, place, **options)
        assert caught.value.code == code
    else:
        assert refused(source, place, **options) == code
    assert source.read_bytes() == before


def test_links_to_the_source_are_the_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(source)
    os.link(source, tmp_path / "hard.safetensors")
    before = source.read_bytes()
    for name in ("link.safetensors", "hard.safetensors"):
        assert refused(source, tmp_path / name, overwrite=True) == "target-is-source"
    assert source.read_bytes() == before


def test_an_existing_target_needs_consent(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    assert refused(source, target) == "exists"
    assert target.read_bytes() == b"precious"
    ck.convert(source, target, overwrite=True)
    assert read_back(target) == read_back(source)


def test_tiny_files_that_claim_gigabytes_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    bomb = tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(1).expand(1 << 20, 1 << 12)}, bomb)
    assert ck.read(bomb)["w"].shape == (1 << 20, 1 << 12)
    assert refused(bomb, tmp_path / "out.safetensors") == "expands"


def test_a_sidecar_holds_what_json_can(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    source = tmp_path / "trainer.pt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3, "args": {"lr": 0.1, "name": "é"}}, source)
    plan = ck.plan(source, tmp_path / "out.safetensors")
    assert any("non-tensor" in what for what in plan.left_out)
    ck.convert(source, tmp_path / "out.safetensors", sidecar=tmp_path / "side.json")
    side = json.loads((tmp_path / "side.json").read_text())
    assert side["objects"] == {"epoch": 3, "args.lr": 0.1, "args.name": "é"}


def test_progress_reaches_the_whole(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    ck.convert(source, tmp_path / "out.safetensors", verify=True, progress=lambda *step: seen.append(step))
    assert {phase for phase, _, _ in seen} == {"write", "verify"}
    for phase in ("write", "verify"):
        done = [(d, total) for p, d, total in seen if p == phase]
        assert done[-1][0] == done[-1][1]
        assert done == sorted(done)


def test_a_folder_is_replaced_only_if_it_holds_nothing_else(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "thesis" / "a.tex").write_text("precious")
    assert refused(source, home, overwrite=True) == "exists"
    assert (home / "thesis" / "a.tex").read_text() == "precious"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.md").write_text("precious")
    assert refused(source, tmp_path / "model", overwrite=True) == "exists"
    (tmp_path / "model" / "notes.md").rename(tmp_path / "model" / "old.safetensors")
    monkeypatch.chdir(tmp_path / "model")
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(source, ".", overwrite=True)
    assert caught.value.code == "exists"
    monkeypatch.chdir(tmp_path)
    ck.convert(source, tmp_path / "model", overwrite=True)
    assert left(tmp_path / "model") == ["model.safetensors"]


def test_tied_tensors_keep_their_dtype_together(tmp_path: Path, arrays: Arrays) -> None:
    tied = tmp_path / "tied.safetensors"
    save_file(
        {"embed": arrays["encoder.weight"], "w": arrays["encoder.norm.weight"]}, tied, {"head": "embed"}
    )
    ck.convert(tied, tmp_path / "out.safetensors", dtype="bfloat16", keep_dtype=["head"])
    graph = ck.read(tmp_path / "out.safetensors")
    assert graph.ties() == {"head": "embed"}
    assert {name: t.dtype.name for name, t in graph.items()} == {
        "embed": "float32",
        "head": "float32",
        "w": "bfloat16",
    }


@pytest.mark.parametrize(
    "options", [{"exclude": ["*.scales"]}, {"include": ["*.qweight"]}, {"include": ["l.scales"]}]
)
def test_parting_a_quantised_weight_from_its_scales_is_a_loss(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    source = tmp_path / "q.safetensors"
    arrays = {
        "l.qweight": np.zeros((4, 8), np.int32),
        "l.qzeros": np.zeros((1, 1), np.int32),
        "l.scales": np.ones((1, 8), np.float16),
    }
    save_file(arrays, source)
    assert refused(source, tmp_path / "out.safetensors", **options) == "scales-left-out"
    ck.convert(source, tmp_path / "out.safetensors", allow_loss=["scales-left-out"], **options)


def test_scales_that_stand_alone_are_not_cast(tmp_path: Path) -> None:
    source = tmp_path / "kv.safetensors"
    save_file({"attn.k_scale": np.ones(1, np.float32), "attn.w": np.ones(3, np.float32)}, source)
    plan = ck.plan(source, tmp_path / "out.safetensors", dtype="bfloat16")
    assert set(plan.cast) == {"attn.w"}
    assert [note.message for note in plan.notes if note.code == "dtype-kept"] == ["not cast: float32 ×1"]


def test_a_sidecar_is_strict_json_and_names_what_it_cannot_hold(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    source = tmp_path / "n.pt"
    torch.save({"w": torch.ones(1), "lr": float("inf"), "b": b"\xff", "c": 1 + 2j, "none": None}, source)
    ck.convert(source, tmp_path / "out.safetensors", sidecar=tmp_path / "side.json")

    def strict(text: str) -> float:
        raise AssertionError(text)

    side = json.loads((tmp_path / "side.json").read_text(), parse_constant=strict)
    assert side["objects"] == {"lr": "inf", "none": None}
    assert side["not_held"] == {"b": "bytes", "c": "complex"}


def test_options_that_mean_nothing_are_refused(source: Path, tmp_path: Path) -> None:
    assert refused(source, tmp_path / "out.safetensors", allow_loss=["overflw"]) == "option-unfit"
    for options in (
        {"external": "external"},
        {"keep_dtype": ["w*"]},
        {"mismatched": "zeros"},
        {"exported_from": source},
        {"name_map": tmp_path / "map.json"},
        {"allow_head_change": True},
        {"into": tmp_path / "base.onnx"},
        {"module": "a:b"},
        {"prove": True},
    ):
        assert refused(source, tmp_path / "out.safetensors", **options) == "option-unfit", options
    for options in ({"fit": source}, {"dtype": "float16"}):
        both = {"into": tmp_path / "base.onnx", **options}
        assert refused(source, tmp_path / "out.onnx", **both) == "option-unfit", options


def test_several_losses_are_told_at_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    source = tmp_path / "s.pt"
    whole = torch.ones(4)
    torch.save({"s": torch.eye(3).to_sparse(), "a": whole, "b": whole[:2]}, source)
    plan = ck.plan(source, tmp_path / "out.safetensors")
    refusal = plan.refusal()
    assert refusal is not None
    assert refusal.hint is not None
    codes = {loss.code for loss in plan.losses}
    assert codes == {"sparse-as-parts", "sharing-lost"}
    assert all(f"--allow-loss {code}" in refusal.hint for code in codes)


def external_model(path: Path, checksum: str | None = None) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    weight = onnx.numpy_helper.from_array(np.arange(1024, dtype=np.float32), "w")
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1024])
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [value], [weight]))
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location=f"{path.name}.data")
    if checksum is not None:
        model = onnx.load(path, load_external_data=False)
        entry = model.graph.initializer[0].external_data.add()
        entry.key, entry.value = "checksum", checksum
        path.write_bytes(model.SerializeToString())


def test_verify_compares_the_checksum_that_a_model_states(tmp_path: Path) -> None:
    import hashlib

    model = tmp_path / "m.onnx"
    external_model(model)
    digest = hashlib.sha1((tmp_path / "m.onnx.data").read_bytes()).hexdigest()
    (tmp_path / "m.onnx.data").unlink()
    external_model(model, digest)
    ck.convert(model, tmp_path / "right.safetensors", verify=True)
    (tmp_path / "m.onnx.data").unlink()
    external_model(model, "0" * 40)
    with pytest.raises(ck.CkptError) as caught:
        ck.convert(model, tmp_path / "wrong.safetensors", verify=True)
    assert caught.value.code == "checksum-mismatch"
    assert not (tmp_path / "wrong.safetensors").exists()


def test_replacing_a_model_leaves_no_data_file_behind(tmp_path: Path) -> None:
    external_model(tmp_path / "a.onnx")
    (tmp_path / "b.onnx.data.backup").write_bytes(b"mine")
    for _ in range(3):
        ck.convert(tmp_path / "a.onnx", tmp_path / "b.onnx", external="external", overwrite=True)
        assert (ck.read(tmp_path / "b.onnx")["w"].numpy() == np.arange(1024)).all()
    data = [name for name in left(tmp_path) if name.startswith("b.onnx.")]
    assert len(data) == 2
    assert "b.onnx.data.backup" in data
