"""Write published.json: names, dtypes and shapes of models as the libraries that define them make them.

    python tests/targets/make_published.py [SOURCE]...

needs torch and, each without its dependencies, the packages named in `SOURCES`; what the file has of other sources is
kept. The models are made without weights. transformers is not here: the tests make its models themselves.
"""

import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from ckptkit.targets.capture import patterns
from ckptkit.targets.pattern import expand

FILE = Path(__file__).with_name("published.json")
Made = Iterator[tuple[str, str, "torch.nn.Module"]]  # target, how it was made, the module

# Declared so that a torchvision built for CUDA can be imported beside a torch that is not.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

TORCHVISION = """
    resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d wide_resnet50_2 wide_resnet101_2
    vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn alexnet squeezenet1_0 squeezenet1_1 mobilenet_v2
    efficientnet_b0 densenet121 densenet169 densenet201
"""
TIMM = """
    resnet18 resnet50 vgg11 vgg16 vgg16_bn efficientnet_b0 mobilenetv2_100 densenet121
"""


def torchvision() -> Made:
    from torchvision import models

    for name in TORCHVISION.split():
        with torch.device("meta"):
            yield f"{name}@torchvision", f"{name}()", getattr(models, name)(weights=None)


def timm() -> Made:
    import timm

    for name in TIMM.split():
        yield f"{name}@timm", f"create_model({name!r})", timm.create_model(name, pretrained=False)


SOURCES: dict[str, Callable[[], Made]] = {"torchvision": torchvision, "timm": timm}


def folded(module: "torch.nn.Module") -> dict[str, str]:
    """Pattern of names → dtype and sizes, such as `float32 64 3 7 7`."""
    state = {
        name: f"{str(t.dtype)[6:]} {' '.join(map(str, t.shape))}".strip()
        for name, t in module.state_dict().items()
    }
    found = dict(patterns(state.items()))
    assert {name: row for pattern, row in found.items() for name in expand(pattern, {})} == state
    return found


def main(sources: list[str]) -> None:
    kept = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    for source in sources or SOURCES:
        kept[source] = {
            "version": version(source),
            "models": [
                {"target": target, "made": made, "tensors": folded(module)}
                for target, made, module in SOURCES[source]()
            ],
        }
    lines = ",\n".join(
        f'{json.dumps(source)}: {{"version": {json.dumps(found["version"])}, "models": [\n'
        + ",\n".join(map(json.dumps, found["models"]))
        + "\n]}"
        for source, found in sorted(kept.items())
    )
    FILE.write_text(f"{{\n{lines}\n}}\n", "utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
