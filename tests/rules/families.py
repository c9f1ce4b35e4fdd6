"""Model families of timm and torchvision whose conversions to Hugging Face are presets, and what they computed.

`python -m tests.rules.families` makes families.json anew, with timm and torchvision installed: for each family the
names and shapes of its state dict (`source`), and what it gives for one input when its weights are `weights(shapes)`
(`output`). The tests need neither package: they convert the same weights, load them into the model of transformers
(`model`: class, config, settings), and compare outputs (`read`: where it has them).
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).parent / "families.json"

FAMILIES: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))


def weights(shapes: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Arrays of these shapes, of sizes at which no layer loses its signal."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if name.endswith("num_batches_tracked"):
            found[name] = np.array(3, "i8")
            continue
        values = np.asarray(rng.normal(size=shape))
        if name.endswith("running_var"):
            values = 0.5 + abs(values)
        elif len(shape) > 1:
            values = values / np.prod(shape[1:]) ** 0.5
        else:
            values = 0.2 * values + name.endswith("weight")
        found[name] = np.asarray(values, "f4")
    return found


def image(size: int) -> Any:
    """The input."""
    return np.random.default_rng(1).normal(size=(1, 3, size, size)).astype("f4")


def _modules() -> dict[str, Any]:
    import timm
    import torch
    import torchvision
    from timm.models import beit, convnext, deit, focalnet, levit, metaformer, pvt_v2, resnetv2
    from timm.models import swin_transformer as swin
    from timm.models import vision_transformer as vit

    side: dict[str, Any] = {"embed_dim": 8, "depth": 2, "num_heads": 2}
    small = {**side, "img_size": 32, "patch_size": 16, "num_classes": 5}
    tall = {**side, "img_size": 28, "patch_size": 14, "num_classes": 0}
    narrow: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (4, 6, 8, 10), "num_classes": 5}

    def poolformer() -> Any:
        """timm pools before its last norm, the published model after it."""
        pool = {"token_mixers": metaformer.Pooling, "mlp_act": torch.nn.GELU, "mlp_bias": True}
        norms = {"norm_layers": metaformer.GroupNorm1, "downsample_norm": None}
        scales = {"layer_scale_init_values": 1e-5, "res_scale_init_values": None, "use_mlp_head": False}
        four = {**narrow, "depths": (1, 1, 1, 1)}
        model = metaformer.MetaFormer(**four, **pool, **norms, **scales)
        norm = model.head.norm

        def forward(x: Any) -> Any:
            x = model.forward_features(x)
            x = torch.nn.functional.group_norm(x, 1, norm.weight, norm.bias, 1e-5)
            return model.head.fc(x.mean([-2, -1]))

        model.forward = forward
        return model

    group_norm = partial(timm.layers.GroupNormAct, num_groups=8)
    std_conv = partial(timm.layers.StdConv2d, eps=1e-6)
    grn = {"use_grn": True, "ls_init_value": None}
    rel = {"init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": True}
    tv_vit = partial(torchvision.models.VisionTransformer, 32, 16, 2, 2, 8, 32, num_classes=5)
    return {
        "beit-timm-hf": lambda: beit.Beit(**small, **rel),
        "bit-timm-hf": lambda: resnetv2.ResNetV2(
            layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), stem_chs=32, num_classes=5, stem_type="fixed",
            norm_layer=group_norm, conv_layer=std_conv),
        "convnext-timm-hf": lambda: convnext.ConvNeXt(**narrow),
        "convnextv2-timm-hf": lambda: convnext.ConvNeXt(**narrow, **grn),
        "deit-timm-hf": lambda: deit.VisionTransformerDistilled(**small),
        "dinov2-hf": lambda: vit.VisionTransformer(**tall, init_values=1e-5, global_pool="token"),
        "efficientnet-timm-hf": lambda: timm.create_model("tf_efficientnet_b0", num_classes=5),
        "focalnet-timm-hf": lambda: focalnet.FocalNet(
            depths=(1,) * 4, embed_dim=8, focal_levels=(2,) * 4, focal_windows=(3,) * 4, num_classes=5),
        "levit-timm-hf": lambda: levit.LevitDistilled(
            img_size=64, embed_dim=(16, 24, 32), key_dim=8, depth=(1, 2, 1), num_heads=(1, 2, 2), num_classes=5),
        "mobilenetv2-timm-hf": lambda: timm.create_model("mobilenetv2_035", num_classes=5),
        "mobilenetv2-torchvision-hf": lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.35),
        "poolformer-timm-hf": poolformer,
        "pvtv2-timm-hf": lambda: pvt_v2.PyramidVisionTransformerV2(
            depths=(1,) * 4, embed_dims=(4, 8, 10, 12), num_heads=(1, 2, 5, 6), num_classes=5, mlp_ratios=(8, 8, 4, 4)),
        "regnet-timm-hf": lambda: timm.create_model("regnety_002", num_classes=5),
        "resnet-torchvision-hf": lambda: torchvision.models.resnet18(num_classes=5),
        "siglip-vision-timm-hf": lambda: vit.VisionTransformer(
            **tall, class_token=False, global_pool="map", act_layer="gelu_tanh"),
        "swin-timm-hf": lambda: swin.SwinTransformer(
            img_size=32, patch_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5),
        "vit-timm-hf": lambda: vit.VisionTransformer(**small, norm_layer=partial(torch.nn.LayerNorm, eps=1e-12)),
        "vit-torchvision-hf": tv_vit,
    }  # fmt: skip


def record() -> None:
    """Write families.json, one family a line; what it says about the model of transformers stays."""
    import torch

    lines = []
    for name, make in sorted(_modules().items()):
        model = make().eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        arrays = weights(shapes)
        model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
        with torch.no_grad():
            output = model(torch.from_numpy(image(FAMILIES[name]["size"])))
        numbers = [float(f"{value:.7g}") for value in output.flatten().tolist()]
        family = {**FAMILIES[name], "output": numbers, "source": shapes}
        lines.append(f'"{name}": {json.dumps(family, separators=(",", ":"))}')
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    record()
