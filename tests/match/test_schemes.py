"""What names tell, on small models with real names."""

import pytest

from ckptkit.core.dtypes import dtype
from ckptkit.core.tensor import Tensor
from ckptkit.match.schemes import SCHEMES, naming, unwrapped


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: Tensor(dtype("float32"), shape) for name, shape in shapes.items()}


def llama(prefix: str = "", layers: int = 3) -> dict[str, Tensor]:
    shapes = {"model.embed_tokens.weight": (99, 64), "model.norm.weight": (64,), "lm_head.weight": (99, 64)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{p}_proj.weight": (64, 64) for p in "qo"}
        shapes |= {f"{at}self_attn.{p}_proj.weight": (32, 64) for p in "kv"}
        shapes |= {f"{at}mlp.{p}_proj.weight": (96, 64) for p in ("gate", "up")}
        shapes |= {f"{at}input_layernorm.weight": (64,), f"{at}mlp.down_proj.weight": (64, 96)}
    return tensors(**{prefix + name: shape for name, shape in shapes.items()})


def resnet(blocks: tuple[int, ...], *, bottleneck: bool) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.weight": (64,),
        "fc.weight": (1000, 512),
    }
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            for conv in range(1, 4 if bottleneck else 3):
                shapes[f"layer{stage}.{block}.conv{conv}.weight"] = (64, 64, 3, 3)
    return tensors(**shapes)


def test_sizes_come_from_shapes() -> None:
    found = naming(llama())
    assert (found.scheme, found.family, found.wrappers) == ("Llama", "Hugging Face", ())
    assert dict(found.sizes) == {"layers": 3, "width": 64, "vocab": 99}


def test_heads_come_from_a_tensor_of_one_head() -> None:
    found = llama() | tensors(**{"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)})
    assert dict(naming(found).sizes)["heads"] == 4
    assert dict(naming(found).sizes)["key/value heads"] == 2


@pytest.mark.parametrize(
    ("prefix", "wrappers"),
    [
        ("module.", ("module.",)),
        ("_orig_mod.module.", ("_orig_mod.", "module.")),
        ("_fsdp_wrapped_module.", ("_fsdp_wrapped_module.",)),
        ("net.", ("net.",)),
        ("student.net.", ("student.", "net.")),
    ],
)
def test_wrappers_are_taken_off(prefix: str, wrappers: tuple[str, ...]) -> None:
    found = naming(llama(prefix))
    assert found.scheme == "Llama"
    assert found.wrappers == wrappers


def test_wrappers_in_the_middle_are_seen() -> None:
    found = naming({name.replace("layers.", "layers._orig_mod."): t for name, t in llama().items()})
    assert found.scheme == "Llama"
    assert found.wrappers == ("…._orig_mod.",)


def test_a_prefix_of_the_scheme_is_no_wrapper() -> None:
    tied = {name: tensor for name, tensor in llama().items() if name != "lm_head.weight"}
    assert naming(tied).wrappers == ()


def test_unknown_names_tell_only_sure_wrappers() -> None:
    found = naming(tensors(**{"module.a.weight": (1,), "module.b.weight": (1,)}))
    assert (found.scheme, found.wrappers) == ("", ("module.",))
    assert naming(tensors(**{"model.a.weight": (1,)})).wrappers == ()
    assert naming({}).scheme == ""


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "name"),
    [
        ((2, 2, 2, 2), False, "ResNet-18"),
        ((3, 4, 6, 3), False, "ResNet-34"),
        ((3, 4, 6, 3), True, "ResNet-50"),
        ((3, 8, 36, 3), True, "ResNet-152"),
        ((1, 1, 1, 1), True, "ResNet"),
    ],
)
def test_the_depth_of_a_resnet(blocks: tuple[int, ...], bottleneck: bool, name: str) -> None:
    found = naming(resnet(blocks, bottleneck=bottleneck))
    assert (found.scheme, found.family) == (name, "torchvision")
    assert dict(found.sizes) == {"classes": 1000}


def test_vgg_and_alexnet_are_told_apart() -> None:
    def features(*numbers: int) -> dict[str, Tensor]:
        heads = {f"classifier.{n}.weight": (10, 10) for n in (0, 1, 3, 4, 6)}
        return tensors(**{f"features.{n}.weight": (8, 8, 3, 3) for n in numbers}, **heads)

    assert naming(features(0, 3, 6, 8, 10)).scheme == "AlexNet"
    assert naming(features(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)).scheme == "VGG-16"


def test_quantised_names_are_known_too() -> None:
    found = {name.replace("proj.weight", "proj.qweight"): tensor for name, tensor in llama().items()}
    assert naming(found).scheme == "Llama"


def test_unwrapped() -> None:
    assert unwrapped("module.model._orig_mod.layers.0.w") == "layers.0.w"
    assert unwrapped("module.") == ""


def test_every_row_matches_its_own_marks() -> None:
    for scheme in SCHEMES:
        root = scheme.roots[0]
        names = [root + mark.replace("{}", "0") for mark in scheme.marks.split()]
        assert naming(tensors(**dict.fromkeys(names, (4, 4, 4, 4)))).scheme, scheme.name


def test_real_modules(request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    transformers = pytest.importorskip("transformers", reason="needs the hf extra")
    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    for config, model, scheme in (
        ("BertConfig", "BertModel", "BERT"),
        ("LlamaConfig", "LlamaForCausalLM", "Llama"),
        ("ViTConfig", "ViTForImageClassification", "ViT"),
    ):
        with torch.device("meta"):
            module = getattr(transformers, model)(getattr(transformers, config)(**small))
        found = naming({n: Tensor(dtype("float32"), tuple(t.shape)) for n, t in module.state_dict().items()})
        sizes = dict(found.sizes)
        assert (found.scheme, sizes["layers"], sizes["width"]) == (scheme, 2, 64)


def test_ranks_are_seen_and_sizes_of_one_are_not_told() -> None:
    ranks = {f"{rank}.{name}": tensor for rank in (0, 1) for name, tensor in llama().items()}
    found = naming(ranks)
    assert (found.scheme, found.sizes) == ("Llama", (("ranks", 2), ("layers", 3)))
    assert naming({name: tensor for name, tensor in ranks.items() if name[0] == "1"}).scheme == ""
