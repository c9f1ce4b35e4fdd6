"""Write published.json: names, dtypes and shapes of models as the code that defines them makes them.

    python tests/targets/make_published.py [SOURCE]...

needs torch and the packages of `SOURCES`, each without its dependencies: what they import and do not need for this is
replaced by empty modules. What the file has of other sources is kept. The models are made without trained weights.
transformers is not here: the tests make its models themselves.
"""

import json
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ckptkit.targets.capture import patterns
from ckptkit.targets.pattern import expand

FILE = Path(__file__).with_name("published.json")
State = dict[str, torch.Tensor]
Made = Iterator[tuple[str, str, State]]  # target, how it was made, the state dict

# Declared so that a torchvision built for CUDA can be imported beside a torch that is not.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

TORCHVISION = """
    resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d wide_resnet50_2 wide_resnet101_2
    vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn alexnet squeezenet1_0 squeezenet1_1 mobilenet_v2
    efficientnet_b0 densenet121 densenet169 densenet201 vit_b_16 vit_b_32 vit_l_16 vit_l_32 swin_t swin_s swin_b
"""
DETECTION = "fasterrcnn_resnet50_fpn maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn ssd300_vgg16"
TIMM = """
    resnet18 resnet50 vgg11 vgg16 vgg16_bn efficientnet_b0 mobilenetv2_100 densenet121 vit_tiny_patch16_224
    vit_small_patch16_224 vit_small_patch32_224 vit_base_patch16_224 vit_base_patch32_224 vit_base_patch16_384
    vit_large_patch16_224 vit_large_patch16_384 deit_small_patch16_224 swin_tiny_patch4_window7_224
    swin_small_patch4_window7_224 swin_base_patch4_window7_224 swin_large_patch4_window7_224
"""
# Names of published files that torchvision still takes: the module's names → those.
OLDER = {
    "densenet121": ((r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."),),
    "maskrcnn_resnet50_fpn": (
        (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (
            r"roi_heads\.mask_head\.(\d)\.0\.",
            lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}.",
        ),
        (r".*num_batches_tracked", ""),
    ),
}


def torchvision() -> Made:
    from torchvision import models
    from torchvision.models import detection

    for name in TORCHVISION.split():
        with torch.device("meta"):
            yield f"{name}@torchvision", f"{name}()", getattr(models, name)(weights=None).state_dict()
    for name in DETECTION.split():
        module = getattr(detection, name)(weights=None, weights_backbone=None)
        yield f"{name}@torchvision", f"{name}()", module.state_dict()
    for name, changes in OLDER.items():
        if hasattr(models, name):
            module = getattr(models, name)()
        else:  # as published: norms that are frozen count no batches
            norm = import_module("torchvision.ops.misc").FrozenBatchNorm2d
            module = getattr(detection, name)(weights=None, weights_backbone=None)
            frozen = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
            for path, old in frozen.items():
                parent, _, last = path.rpartition(".")
                setattr(module.get_submodule(parent), last, norm(old.num_features))
        state = module.state_dict()
        for pattern, instead in changes:
            state = OrderedDict((re.sub(pattern, instead, key), tensor) for key, tensor in state.items())
        state.pop("", None)
        if not hasattr(models, name):  # of DenseNet the function that downloads renames, not the module
            module.load_state_dict(state)
        yield f"{name}@torchvision-old", f"{name}(), older names", state


def timm() -> Made:
    import timm

    for name in TIMM.split():
        yield (
            f"{name}@timm",
            f"create_model({name!r})",
            timm.create_model(name, pretrained=False).state_dict(),
        )


def ultralytics() -> Made:
    without("cv2", "matplotlib", "psutil", "polars", "scipy", "requests")
    tasks = import_module("ultralytics.nn.tasks")
    for size in "nsmlx":
        name = f"yolov8{size}"
        yield (
            f"{name}@ultralytics",
            f"DetectionModel({name!r})",
            tasks.DetectionModel(f"{name}.yaml").state_dict(),
        )


def open_clip() -> Made:
    without("ftfy")
    open_clip = import_module("open_clip")
    for target, name in (
        ("clip-vit-base-patch32", "ViT-B-32"),
        ("clip-vit-base-patch16", "ViT-B-16"),
        ("clip-vit-large-patch14", "ViT-L-14"),
        ("clip-vit-large-patch14-336", "ViT-L-14-336"),
    ):
        yield f"{target}@openai", f"create_model({name!r})", open_clip.create_model(name).state_dict()


def whisper() -> Made:
    bare("whisper")
    without("whisper.decoding", "whisper.transcribe", "tiktoken", "numba")
    model = import_module("whisper.model")
    for name, sizes in {
        "tiny": (80, 1500, 384, 6, 4, 51865, 448, 384, 6, 4),
        "base.en": (80, 1500, 512, 8, 6, 51864, 448, 512, 8, 6),
        "large-v3-turbo": (128, 1500, 1280, 20, 32, 51866, 448, 1280, 20, 4),
    }.items():
        yield (
            f"whisper-{name}@openai",
            f"Whisper{sizes}",
            model.Whisper(model.ModelDimensions(*sizes)).state_dict(),
        )


def allennlp() -> Made:
    """Elmo reads its weights when it is made: zeros of the shapes that it asks for."""
    import h5py
    import numpy as np

    bare("allennlp", "allennlp.modules", "allennlp.nn", "allennlp.common", "allennlp.data")
    without(
        "overrides", "more_itertools", "allennlp.common.file_utils", "allennlp.common.util", "allennlp.common.checks",
        "allennlp.common.registrable", "allennlp.data.instance", "allennlp.data.tokenizers",
        "allennlp.data.tokenizers.token_class", "allennlp.data.vocabulary", "allennlp.data.batch",
        "allennlp.data.fields", "allennlp.data.token_indexers", "allennlp.data.token_indexers.elmo_indexer",
    )  # fmt: skip
    common = sys.modules["allennlp.common"]
    common.FromParams = common.Params = object  # type: ignore[attr-defined]
    registrable = {"register": lambda *names, **more: lambda made: made}
    common.Registrable = type("Registrable", (), registrable)  # type: ignore[attr-defined]
    elmo = import_module("allennlp.modules.elmo")
    elmo.cached_path = import_module("allennlp.modules.elmo_lstm").cached_path = str
    mapper = {"beginning_of_sentence_characters": [0] * 50, "end_of_sentence_characters": [0] * 50}
    elmo.ELMoCharacterMapper = type("ELMoCharacterMapper", (), mapper)
    filters = [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]]
    for name, cell, size in (
        ("elmo-small", 1024, 128),
        ("elmo-medium", 2048, 256),
        ("elmo-original", 4096, 512),
    ):
        cnn = {"activation": "relu", "filters": filters, "n_highway": 2, "embedding": {"dim": 16}}
        lstm = {
            "use_skip_connections": True,
            "projection_dim": size,
            "cell_clip": 3,
            "proj_clip": 3,
            "dim": cell,
        }
        options = {
            "lstm": {**lstm, "n_layers": 2},
            "char_cnn": {**cnn, "n_characters": 262, "max_characters_per_token": 50},
        }
        shapes = {"char_embed": (261, 16), "CNN_proj/W_proj": (2048, size), "CNN_proj/b_proj": (size,)}
        for place, (width, count) in enumerate(filters):
            shapes |= {f"CNN/W_cnn_{place}": (1, width, 16, count), f"CNN/b_cnn_{place}": (count,)}
        for place in "01":
            for gate in ("carry", "transform"):
                shapes |= {f"CNN_high_{place}/W_{gate}": (2048, 2048), f"CNN_high_{place}/b_{gate}": (2048,)}
            for layer in "01":
                path = f"RNN_{place}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
                shapes |= {
                    f"{path}/W_0": (2 * size, 4 * cell),
                    f"{path}/B": (4 * cell,),
                    f"{path}/W_P_0": (cell, size),
                }
        folder = Path(__file__).with_name("elmo.tmp")
        folder.mkdir(exist_ok=True)
        (folder / "options.json").write_text(json.dumps(options))
        with h5py.File(folder / "weights.hdf5", "w") as file:
            for path, shape in shapes.items():
                file.create_dataset(path, data=np.zeros(shape, np.float32))
        module = elmo.Elmo(folder / "options.json", folder / "weights.hdf5", 1)
        for made in folder.iterdir():
            made.unlink()
        folder.rmdir()
        yield f"{name}@allennlp", f"Elmo, cells of {cell}", module.state_dict()


def detr() -> Made:
    """transformers' own, on a backbone of timm."""
    transformers = import_module("transformers")
    for depth in (50, 101):
        sizes = {"num_labels": 91, "backbone": f"resnet{depth}", "use_pretrained_backbone": False}
        module = transformers.DetrForObjectDetection(transformers.DetrConfig(use_timm_backbone=True, **sizes))
        saved = import_module("transformers.core_model_loading").revert_weight_conversion(
            module, module.state_dict()
        )
        yield f"detr-resnet-{depth}@hf", f"DetrForObjectDetection, {sizes['backbone']}", saved


SOURCES: dict[str, Callable[[], Made]] = {
    "torchvision": torchvision,
    "timm": timm,
    "ultralytics": ultralytics,
    "open_clip": open_clip,
    "whisper": whisper,
    "allennlp": allennlp,
    "detr": detr,
}


class _Nothing(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


class _Finder:
    """Finds modules that are not there, or are not wanted."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        wanted = name in self.names or name.partition(".")[0] in self.names
        return ModuleSpec(name, self, is_package=True) if wanted else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Nothing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def without(*names: str) -> None:
    """Import these as modules of nothing."""
    sys.meta_path.insert(0, _Finder(names))  # type: ignore[arg-type]


def bare(*packages: str) -> None:
    """Import from these packages without running what they import themselves."""
    for name in packages:
        spec = find_spec(name) if "." not in name else None
        parent, _, last = name.rpartition(".")
        module = types.ModuleType(name)
        found = spec.submodule_search_locations if spec else [f"{sys.modules[parent].__path__[0]}/{last}"]
        module.__path__ = list(found or ())
        sys.modules[name] = module


def folded(state: State) -> dict[str, str]:
    """Pattern of names → dtype and sizes, such as `float32 64 3 7 7`."""
    rows = {name: f"{str(t.dtype)[6:]} {' '.join(map(str, t.shape))}".strip() for name, t in state.items()}
    found = dict(patterns(rows.items()))
    assert {name: row for pattern, row in found.items() for name in expand(pattern, {})} == rows
    return found


def main(sources: list[str]) -> None:
    kept = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    for source in sources or SOURCES:
        kept[source] = [
            {"target": target, "made": made, "tensors": folded(state)}
            for target, made, state in SOURCES[source]()
        ]
    lines = ",\n".join(
        f"{json.dumps(source)}: [\n" + ",\n".join(map(json.dumps, found)) + "\n]"
        for source, found in sorted(kept.items())
    )
    FILE.write_text(f"{{\n{lines}\n}}\n", "utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
