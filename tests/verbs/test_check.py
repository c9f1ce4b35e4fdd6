"""check: the verdict, the likely cause of each difference, and commands that mend it when they are run."""

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptkit as ck
from ckptkit.targets.contract import Contract
from ckptkit.targets.target import Target
from ckptkit.verbs.check import CheckReport, check
from tests.graphs import graph
from tests.support import Result

Shapes = dict[str, tuple[int, ...]]
D = 32


def transformer(layers: int = 3, vocab: int = 100, classes: int = 10, positions: int = 64) -> Shapes:
    """A small encoder with a classifier."""
    shapes: Shapes = {"embed_tokens.weight": (vocab, D), "position_embeddings.weight": (positions, D)}
    for i in range(layers):
        shapes |= {f"layers.{i}.attn.{part}_proj.weight": (D, D) for part in "qkvo"}
        shapes |= {f"layers.{i}.mlp.fc_in.weight": (4 * D, D), f"layers.{i}.mlp.fc_out.weight": (D, 4 * D)}
        shapes |= {f"layers.{i}.norm.weight": (D,)}
    return {**shapes, "norm.weight": (D,), "classifier.weight": (classes, D), "classifier.bias": (classes,)}


def fused(shapes: Shapes) -> Shapes:
    kept = {
        n: s for n, s in shapes.items() if not n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    }
    return {**kept, **{f"layers.{i}.attn.qkv_proj.weight": (3 * D, D) for i in range(3)}}


def changed(shapes: Shapes, rename: Callable[[str], str]) -> Shapes:
    return {rename(name): shape for name, shape in shapes.items()}


def without(shapes: Shapes, part: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if part not in name}


BASE = transformer()
# what happened, the checkpoint, words of the summary, words of every error's cause.
KINDS: list[tuple[str, Shapes, str, str]] = [
    ("DataParallel", changed(BASE, "module.{}".format), "another naming", "DataParallel"),
    ("compiled", changed(BASE, "_orig_mod.{}".format), "another naming", "torch.compile"),
    ("both", changed(BASE, "_orig_mod.module.{}".format), "another naming", "prefix '_orig_mod.module.'"),
    ("compiled within", changed(BASE, lambda n: n.replace("attn.", "attn._orig_mod.")), "another naming", "within"),
    ("averaged", changed(BASE, "ema_model.{}".format), "another naming", "averaged copy"),
    ("in a module", changed(BASE, "encoder.text.{}".format), "another naming", "prefix 'encoder.text.'"),
    ("other classes", transformer(classes=3), "fits except the head", "number of classes"),
    ("other vocabulary", transformer(vocab=101), "other shapes", "a vocabulary of 101 instead of 100"),
    ("other length", transformer(positions=128), "other shapes", "position embeddings"),
    ("fewer layers", transformer(layers=2), "number of layers", "fewer layers"),
    ("more layers", transformer(layers=5), "number of layers", "more layers"),
    ("no head", without(BASE, "classifier"), "fits except the head", "without its head"),
    ("fused", fused(BASE), "", "fused"),
    ("transposed", {**BASE, "layers.1.mlp.fc_in.weight": (D, 4 * D)}, "other shapes", "transposed"),
    ("squeezed", {**BASE, "layers.1.norm.weight": (1, D)}, "other shapes", "dimensions of 1"),
    ("a buffer", {**BASE, "embeddings.position_ids": (1, 64)}, "right architecture", "no longer saves"),
    ("an adapter", {**BASE, "layers.0.attn.q_proj.lora_A.weight": (4, D)}, "right architecture", "LoRA"),
    ("other module", changed(BASE, "backbone.{}".format), "another naming", "prefix 'backbone.'"),
    ("every fourth fused", {**without(BASE, "layers.2.attn.q_proj"), "layers.2.attn.qkv.weight": (3 * D, D)}, "", ""),
    ("gamma", changed(BASE, lambda n: n.replace("norm.weight", "norm.gamma")), "", "gamma"),
    ("weight norm", {**without(BASE, "layers.0.mlp.fc_in"), "layers.0.mlp.fc_in.weight_g": (4 * D, 1),
                     "layers.0.mlp.fc_in.weight_v": (4 * D, D)}, "another naming", "weight-norm-fold"),
    ("new weight norm", {
        **without(BASE, "layers.0.mlp.fc_in"),
        "layers.0.mlp.fc_in.parametrizations.weight.original0": (4 * D, 1),
        "layers.0.mlp.fc_in.parametrizations.weight.original1": (4 * D, D),
    }, "", "weight normalisation"),
    ("wider", {n: tuple(2 * size if size == D else size for size in s) for n, s in BASE.items()}, "other sizes", ""),
    ("another layer", {**BASE, "layers.0.norm.weight": (D, 2, 2)}, "other shapes", "another kind of layer"),
    ("an averaged copy beside", {**BASE, **{f"ema.{n}": s for n, s in BASE.items()}}, "right architecture", "averaged"),
    ("quantiser's tables", {**BASE, "layers.0.mlp.fc_in.scales": (4,)}, "right architecture", "quantised"),
    ("frequencies", {**BASE, "layers.0.attn.rotary_emb.inv_freq": (8,)}, "right architecture", "no longer saves"),
    ("fewer and other classes", {**transformer(layers=2), "x": ()}, "right architecture", ""),
    ("a head too many", {**BASE, "lm_head.weight": (100, D)}, "fits except the head", ""),
    ("a typing error", changed(BASE, lambda n: n.replace("layers.0.norm", "layers.0.nrom")), "", "another name"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shapes", "summary", "cause"), KINDS, ids=[kind for kind, *_ in KINDS])
def test_the_cause_is_told(kind: str, shapes: Shapes, summary: str, cause: str) -> None:
    report = check(graph(shapes), graph(BASE))
    assert report.verdict == "does not fit"
    assert summary in report.summary
    errors = [item for item in report.findings if item.severity == "error"]
    assert errors
    assert all(cause in item.cause for item in errors), [item.cause for item in errors]


# The base, the checkpoint, words of every cause.
OTHERS: list[tuple[str, Shapes, Shapes, str]] = [
    ("in_proj", {f"l.{p}_proj.weight": (D, D) for p in "qkv"}, {"l.in_proj_weight": (3 * D, D)}, "in-proj-split"),
    ("apart", {"l.in_proj_weight": (3 * D, D)}, {f"l.{p}_proj.weight": (D, D) for p in "qkv"}, "in-proj-split"),
    ("c_attn", {"l.c_attn.weight": (D, 3 * D)}, {f"l.{p}_proj.weight": (D, D) for p in "qkv"}, "c_attn"),
    ("gates", {f"l.{p}_proj.weight": (D, D) for p in ("gate", "up")}, {"l.gate_up_proj.weight": (2 * D, D)}, "fused"),
    ("Keras", {"conv.weight": (64, 3, 7, 5)}, {"conv.weight": (7, 5, 3, 64)}, "another order"),
    ("grey", {"conv1.weight": (64, 3, 7, 7)}, {"conv1.weight": (64, 1, 7, 7)}, "1 input channels instead of 3"),
    ("1×1", {"proj.weight": (64, 32, 1, 1)}, {"proj.weight": (64, 32)}, "dimensions of 1"),
    ("a tiny head", {"a.weight": (9, 9), "fc.weight": (1, 9)}, {"a.weight": (9, 9), "fc.weight": (7, 9)}, "classes"),
    ("image size", {"pos_embed": (1, 197, 8)}, {"pos_embed": (1, 577, 8)}, "image size"),
    ("parametrised", {"c.weight_g": (3, 1), "c.weight_v": (3, 3)},
     {f"c.parametrizations.weight.original{i}": s for i, s in enumerate([(3, 1), (3, 3)])}, "weight-norm"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "base", "shapes", "cause"), OTHERS, ids=[kind for kind, *_ in OTHERS])
def test_causes_in_other_models(kind: str, base: Shapes, shapes: Shapes, cause: str) -> None:
    report = check(graph(shapes), graph(base))
    assert not report.fits
    assert all(cause in item.cause for item in report.findings), [item.cause for item in report.findings]


def test_what_is_equal_fits() -> None:
    report = check(graph(BASE), graph(BASE))
    assert (report.verdict, report.summary, report.findings, report.fixes) == ("fits", "fits", (), ())
    assert report.fitting == report.expected == report.tensors == len(BASE)


def test_another_model_is_another_architecture() -> None:
    report = check(graph({f"conv{i}.weight": (8, 8, 3, 3) for i in range(20)}), graph(BASE))
    assert report.summary == "wrong architecture"
    assert report.fixes == ()


def test_differences_can_be_allowed() -> None:
    other = {**without(transformer(classes=3), "position"), "extra": (1,)}
    options = {"allow_missing": ["pos*"], "allow_unexpected": ["ext*"], "allow_mismatch": ["classifier.*"]}
    report = check(graph(other), graph(BASE), **options)
    assert (report.verdict, report.allowed) == ("fits", 4)
    assert check(graph(other), graph(BASE), **{**options, "allow_missing": []}).verdict == "does not fit"


def test_dropped_and_broken_ties_are_told_apart() -> None:
    tied = graph(BASE, {"lm_head.weight": "embed_tokens.weight"})
    (dropped,) = check(graph(BASE), tied).findings
    assert (dropped.code, dropped.name) == ("tie-dropped", "lm_head.weight")
    assert "embed_tokens.weight" in dropped.cause
    (broken,) = check(graph({**BASE, "lm_head.weight": (100, D)}), tied).findings
    assert broken.code == "tie-broken"
    assert check(tied, tied).fits


def test_quantised_weights_without_their_scales() -> None:
    weight, scale = "layers.0.mlp.fc_in.weight", "layers.0.mlp.fc_in.weight_scale"
    full = {**BASE, scale: (1,)}
    (lacking,) = check(graph(BASE, dtypes={weight: "int8"}), graph(full, dtypes={weight: "int8"})).findings
    assert (lacking.name, lacking.cause) == (scale, "a quantised weight without its scales means nothing")
    contract = Contract.from_graph(graph(BASE))
    (narrow,) = check(graph(BASE, dtypes={weight: "int8"}), contract).findings
    assert (narrow.code, narrow.cause) == ("dtype-differs", "quantised, and its scales are missing")
    # Another checkpoint as target says nothing of the precision of floats, but integers are no floats.
    (narrow,) = check(graph(BASE, dtypes={weight: "int8"}), graph(BASE, dtypes={weight: "float16"})).findings
    assert (narrow.code, narrow.expected, narrow.found) == ("dtype-differs", "float", "int8")


def test_counters_that_older_torch_did_not_save_are_no_error() -> None:
    shapes: Shapes = {"bn.weight": (4,), "bn.running_mean": (4,)}
    full = graph({**shapes, "bn.num_batches_tracked": ()})
    report = check(graph(shapes), full)
    assert report.fits
    assert [item.code for item in report.findings] == ["buffer-defaulted"]
    assert not check(graph(shapes, metadata={"_metadata": "{}"}), full).fits


def write(path: Path, shapes: Shapes, dtype: str = "float32") -> Path:
    save_file({name: np.ones(shape, dtype) for name, shape in shapes.items()}, path, {"format": "pt"})
    return path


MENDED: list[tuple[str, Shapes, str]] = [
    *[(kind, shapes, "float32") for kind, shapes, *_ in KINDS if kind in (
        "DataParallel", "compiled", "both", "averaged", "in a module", "a buffer", "an adapter")],
    ("a prefix lacks", changed(BASE, lambda n: n), "float32"),
    ("halved", BASE, "float16"),
    ("all at once", changed({**BASE, "pos.position_ids": (1, 3)}, "module.{}".format), "float16"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shapes", "dtype"), MENDED, ids=[kind for kind, *_ in MENDED])
def test_the_command_mends_it(
    kind: str,
    shapes: Shapes,
    dtype: str,
    tmp_path: Path,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = changed(BASE, "model.text.{}".format) if kind == "a prefix lacks" else BASE
    Contract.from_graph(ck.read(write(tmp_path / "base.safetensors", base))).save("base.ckpt.yaml")
    write(tmp_path / "it.safetensors", shapes, dtype)
    report = check("it.safetensors", "base.ckpt.yaml")
    assert not report.fits
    words = shlex.split(report.fixes[0])
    assert words[:2] == ["ckptkit", "convert"]
    done = run(*words[1:], "-q")
    assert done.code == 0, done.stderr
    assert check(words[3], "base.ckpt.yaml").fits


def test_the_section_that_fits_is_found(tmp_path: Path, run: Callable[..., Result]) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    plain = {name: torch.zeros(shape) for name, shape in BASE.items()}
    other = {name: torch.zeros(shape) for name, shape in transformer(layers=1, classes=4).items()}
    torch.save({"model": other, "ema": plain, "optimizer": {}}, tmp_path / "last.ckpt")
    write(tmp_path / "base.safetensors", BASE)
    report = check(tmp_path / "last.ckpt", tmp_path / "base.safetensors", section="model")
    words = shlex.split(report.fixes[0])
    assert words[1:2] + words[-2:] == ["check", "--section", "ema"]
    assert run(*words[1:]).code == 0


def demands(text: str) -> Target:
    return Contract.parse(f"ckptkit-contract: 1\ntensors:\n  a: any\n{text}").target()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("metadata: {format: pt}", None),
        ("metadata: {format: any}", None),
        ("metadata: {format: np}", "metadata-other"),
        ("metadata: {license: any}", "metadata-missing"),
        ("forbidden: [a]", "name-forbidden"),
        ("policies: {dtypes: [float32]}", None),
        ("policies: {dtypes: [bfloat16]}", "dtype-refused"),
        ("policies: {max_size: 1kB}", None),
        ("policies: {max_size: 10}", "too-large"),
        ("policies: {values: finite}", "not-finite"),
        ("digest: " + "0" * 64, "digest-differs"),
        ("files: {m.safetensors: {sha256: " + "0" * 64 + ", size: 1}}", "file-differs"),
        ("files: {other.safetensors: {sha256: " + "0" * 64 + ", size: 1}}", "file-missing"),
    ],
)
def test_each_demand_of_a_contract(text: str, code: str | None, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": np.array([1, np.nan], np.float32)}, path, {"format": "pt"})
    report = check(path, demands(text))
    assert [item.code for item in report.findings] == ([code] if code else [])
    assert report.fits == (code is None)


def test_a_digest_and_files_that_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": (2,)})
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    text = f"digest: {ck.digest(path)}\nfiles: {{m.safetensors: {{sha256: {sha}, size: {size}}}}}"
    assert check(path, demands(text)).fits
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n"
    path.write_text(pointer, "utf-8")
    report = check(path, demands(text))
    assert report.fits
    assert "git-LFS pointer" in report.summary
    path.write_text(pointer.replace(f"size {size}", f"size {size + 1}"), "utf-8")
    assert [item.code for item in check(path, demands(text)).findings] == ["file-differs"]
    with pytest.raises(ck.CkptError) as caught:  # a contract that states no files cannot judge a pointer
        check(path, demands(""))
    assert caught.value.code == "lfs-pointer"


def test_optional_and_unlisted_tensors() -> None:
    head = "ckptkit-contract: 1\ntensors:\n  a: any\n"
    optional = Contract.parse(head + "optional:\n  b: any [2]\n")
    assert check(graph({"a": (1,)}), optional).fits
    assert check(graph({"a": (1,), "b": (2,)}), optional).fits
    assert not check(graph({"a": (1,), "b": (3,)}), optional).fits
    assert not check(graph({"a": (1,), "c": (3,)}), optional).fits
    assert check(graph({"a": (1,), "c": (3,)}), Contract.parse(head + "unlisted: allow\n")).fits


def errors(report: CheckReport) -> list[str]:
    return [item.name for item in report.findings if item.severity == "error"]


def test_real_resnets_are_subsets(shared_data: Path) -> None:
    small, large = (
        shared_data / "cifar_resnet" / name for name in ("resnet20-12fca82f.th", "resnet32-d509ac18.th")
    )
    if not small.exists():
        pytest.skip("needs cifar_resnet")
    fewer, more = check(small, large), check(large, small)
    assert fewer.summary == more.summary == "the same architecture, with another number of layers"
    assert len(errors(fewer)) == len(errors(more)) == 60
    assert fewer.fitting == more.fitting == 97


def test_real_detectors_differ_exactly_in_the_head(shared_data: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    path = shared_data / "slim_face" / "version-slim-320.pth"
    if not path.exists():
        pytest.skip("needs slim_face")
    state = torch.load(path, map_location="cpu", weights_only=True)
    heads = [n for n in state if n.startswith("classification_headers.") and state[n].shape[0] in (4, 6)]
    grown = {n: torch.cat([t, t[: t.shape[0] // 2]]) if n in heads else t for n, t in state.items()}
    torch.save(grown, tmp_path / "three_classes.pth")
    report = check(tmp_path / "three_classes.pth", path)
    assert report.summary == "fits except the head"
    assert sorted(errors(report)) == sorted(heads)
    onnx = path.with_suffix(".onnx")
    assert check(path, onnx).fits


def test_names_of_another_library(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shapes: Shapes = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, 5, D),
        "patch_embed.proj.weight": (D, 3, 16, 16),
    }
    shapes |= {"patch_embed.proj.bias": (D,), "norm.weight": (D,), "norm.bias": (D,)}
    shapes |= {"head.weight": (10, D), "head.bias": (10,)}
    sizes = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
    for i in range(2):
        shapes |= {f"blocks.{i}.{layer}.weight": shape for layer, shape in sizes.items()}
        shapes |= {f"blocks.{i}.{layer}.bias": shape[:1] for layer, shape in sizes.items()}
        shapes |= {f"blocks.{i}.norm{k}.{part}": (D,) for k in (1, 2) for part in ("weight", "bias")}
    write(tmp_path / "timm.safetensors", shapes)
    ck.convert("timm.safetensors", "hf.safetensors", rules=["vit-timm-hf"])
    for source, target in (("timm", "hf"), ("hf", "timm")):
        report = check(f"{source}.safetensors", f"{target}.safetensors")
        assert report.summary == "right model under another naming"
        words = shlex.split(report.fixes[0])
        assert run(*words[1:], "-q").code == 0
        assert check(words[3], f"{target}.safetensors").fits


@pytest.mark.parametrize("kind", ["in_proj", "apart", "parametrised"])
def test_presets_mend_other_layouts(
    kind: str, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((base, shapes),) = ((base, shapes) for name, base, shapes, _ in OTHERS if name == kind)
    write(tmp_path / "base.safetensors", base)
    write(tmp_path / "it.safetensors", shapes)
    words = shlex.split(check("it.safetensors", "base.safetensors").fixes[0])
    assert run(*words[1:], "-q").code == 0
    assert check(words[3], "base.safetensors").fits


def test_names_in_pickles_outside_a_list(tmp_path: Path, fixtures_dir: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    import fractions

    def save(path: Path, name: str) -> None:
        torch.save({name: torch.zeros(1), "rate": fractions.Fraction(1, 3)}, path)

    save(tmp_path / "a.pt", "a")
    text = "policies: {globals: [%s]}"
    (found,) = check(tmp_path / "a.pt", demands(text % "")).findings
    assert (found.code, found.name) == ("global-refused", "fractions.Fraction")
    assert check(tmp_path / "a.pt", demands(text % "fractions.Fraction")).fits
    assert check(tmp_path / "a.pt", demands("")).fits
    again = Contract.parse(Contract.parse("ckptkit-contract: 1\ntensors: {a: any}\n" + text % "x.Y").text())
    assert again.policies.globals == ("x.Y",)

    # In any shard of several.
    shards = {"a": "model-00001-of-00002.bin", "b": "model-00002-of-00002.bin"}
    torch.save({"a": torch.zeros(1)}, tmp_path / shards["a"])
    save(tmp_path / shards["b"], "b")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    target = Contract.parse("ckptkit-contract: 1\ntensors: {a: any, b: any}\n" + text % "").target()
    report = check(tmp_path / "pytorch_model.bin.index.json", target)
    assert [item.code for item in report.findings if item.severity == "error"] == ["global-refused"]


def test_what_layers_call_an_output_is_no_head() -> None:
    shapes: Shapes = {
        "emb.weight": (50, 32),
        "cls.norm.weight": (32,),
        "cls.dense.weight": (32, 32),
        "cls.dense.bias": (32,),
    }
    shapes |= {
        f"layer.0.attention.output.dense.{part}": size
        for part, size in (("weight", (32, 32)), ("bias", (32,)))
    }
    wider = {
        name: tuple(2 * size if size == 32 else size for size in shape) for name, shape in shapes.items()
    }
    report = check(graph(shapes), Target.of(graph(wider)))
    assert report.findings
    assert not any("classes" in item.cause or item.head for item in report.findings)
    missing = check(graph(without(shapes, "output")), Target.of(graph(shapes)))
    assert [item.cause for item in missing.findings] == ["", ""]


def test_of_parts_that_fit_equally_well_none_is_chosen_in_silence() -> None:
    twins = {f"{part}.{name}": shape for part in ("encoder_k", "encoder_q") for name, shape in BASE.items()}
    report = check(graph({**twins, "queue": (8, 100)}), Target.of(graph(BASE)))
    assert "fitting as well" in report.findings[0].cause
    assert len(report.fixes) == 2
    for part, fix in zip(("encoder_k.", "encoder_q."), report.fixes, strict=True):
        assert f"strip:{part}" in fix


def test_a_wrapper_before_the_names_of_another_library(tmp_path: Path, run: Callable[..., Result]) -> None:
    shapes = vit()
    write(tmp_path / "timm.safetensors", shapes)
    timm, hf, wrapped = (str(tmp_path / f"{name}.safetensors") for name in ("timm", "hf", "wrapped"))
    assert run("convert", timm, hf, "--rules", "vit-timm-hf").code == 0
    assert run("convert", hf, wrapped, "--rules", "add:module.").code == 0
    (fix,) = run("check", wrapped, "--target", timm, "--json").json["fixes"]
    words = shlex.split(fix)
    words[3] = str(tmp_path / "mended.safetensors")
    assert run(*words[1:]).code == 0
    assert check(words[3], timm).fits


def vit() -> Shapes:
    """A vision transformer in the names of timm."""
    shapes: Shapes = {"cls_token": (1, 1, D), "pos_embed": (1, 5, D), "patch_embed.proj.weight": (D, 3, 4, 4)}
    shapes |= {"patch_embed.proj.bias": (D,), "head.weight": (10, D), "head.bias": (10,)}
    for name, rows, columns in (
        ("attn.qkv", 3 * D, D),
        ("attn.proj", D, D),
        ("mlp.fc1", 4 * D, D),
        ("mlp.fc2", D, 4 * D),
    ):
        shapes |= {f"blocks.0.{name}.weight": (rows, columns), f"blocks.0.{name}.bias": (rows,)}
    norms = ("blocks.0.norm1", "blocks.0.norm2", "norm")
    return shapes | {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
