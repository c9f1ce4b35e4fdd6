"""Well-known architectures with random weights, small or in full size, and the ways to export them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Block(nn.Module):  # type: ignore[misc]
    """A residual block with the names of torchvision: two convolutions, or three around a bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        sizes = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
        self.steps = 3 if bottleneck else 2
        for step in range(1, self.steps + 1):
            before, after, kernel = (
                sizes[step - 1] if bottleneck else (inputs if step == 1 else width, width, 3)
            )
            pace = stride if step == self.steps - 1 else 1
            setattr(self, f"conv{step}", nn.Conv2d(before, after, kernel, pace, kernel // 2, bias=False))
            setattr(self, f"bn{step}", nn.BatchNorm2d(after))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Any) -> Any:
        y = x
        for step in range(1, self.steps + 1):
            y = getattr(self, f"bn{step}")(getattr(self, f"conv{step}")(y))
            if step < self.steps:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):  # type: ignore[misc]
    """ResNet-18 and ResNet-50 with the names of torchvision; `width` is 64 in theirs."""

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        bottleneck = depth == 50
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate([3, 4, 6, 3] if bottleneck else [2, 2, 2, 2]):
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Block(inputs, width << stage, stride, bottleneck))
                inputs = (width << stage) * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Any) -> Any:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class Bare(nn.Module):  # type: ignore[misc]
    """A transformers model that gives its outputs as a tuple, under the same names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self._whole = [model]  # in a list, so that it is no module of this one

    def forward(self, x: Any) -> Any:
        return self._whole[0](x, return_dict=False)


def bert(full: bool) -> nn.Module:
    from transformers import BertConfig, BertModel

    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 64, "max_position_embeddings": 32}  # fmt: skip
    return Bare(BertModel(BertConfig(**({} if full else small))))


def vit(full: bool) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "image_size": 32, "patch_size": 8}  # fmt: skip
    return Bare(ViTForImageClassification(ViTConfig(**({"num_labels": 1000} if full else small))))


def image(side: int) -> Callable[[], Any]:
    return lambda: torch.randn(1, 3, side, side)


# name → (module, sample input), each for the full size or a small one
NETS: dict[str, Callable[[bool], tuple[nn.Module, Callable[[], Any]]]] = {
    "resnet18": lambda full: (
        ResNet(18, 64 if full else 8, 1000 if full else 10),
        image(224 if full else 64),
    ),
    "resnet50": lambda full: (
        ResNet(50, 64 if full else 4, 1000 if full else 10),
        image(224 if full else 64),
    ),
    "bert": lambda full: (bert(full), lambda: torch.randint(0, 64, (1, 12))),
    "vit": lambda full: (vit(full), image(224 if full else 32)),
}

# how → settings of torch.onnx.export
EXPORTS: dict[str, dict[str, Any]] = {
    "torchscript": {"dynamo": False},
    "torchscript-unfolded": {"dynamo": False, "do_constant_folding": False},
    "torchscript-kept": {
        "dynamo": False, "do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE
    },
    "dynamo": {"dynamo": True, "external_data": False},
    "dynamo-unoptimized": {"dynamo": True, "external_data": False, "optimize": False},
}  # fmt: skip


def shaken(module: Any, seed: int) -> Any:
    """Every weight and statistic set to random numbers, so that no two are alike."""
    torch.manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.dtype.is_floating_point:
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.2, 2)
        elif tensor.dim() > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.uniform_(0.5, 1.5) if name.endswith("weight") else tensor.normal_(0, 0.1)
    return module.eval()


def export(module: Any, inputs: Any, path: Path, how: str, **settings: Any) -> Path:
    torch.onnx.export(module, (inputs,), str(path), verbose=False, **EXPORTS[how], **settings)
    return path
