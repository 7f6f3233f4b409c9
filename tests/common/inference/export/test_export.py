"""An exported file gives the logits of its model, says what it is, and nothing of the machine that made it.

Drives `common.inference.export.comparison`, `common.inference.export.formats`, `common.inference.export.metadata`,
`common.inference.export.onnx_file`, `common.inference.export.pixel_network`, `common.inference.export.quantization`,
`common.inference.export.torch_program`.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from common.config.schema import RunConfig
from common.errors import ModelError
from common.inference.classifier import Classifier, load_model
from common.inference.export import formats, onnx_file
from common.inference.export.comparison import check_equal, trial_pixels
from common.inference.export.formats import Export, Format, agreement, export_model
from common.inference.export.metadata import metadata_of
from common.inference.export.pixel_network import PixelNetwork
from common.inference.export.quantization import quantise
from tests.support.inference.stored_models import CLASSES, settings_of, shaded_images, store_model
from tests.support.paths import ROOT

MakeConfig = Callable[..., RunConfig]
# More than 1e-4 of the largest logit is a wrong model.
ALLOWED = 1e-4


def stored(folder: Path, make_config: MakeConfig, backbone: str, **more: Any) -> Classifier:
    source = shaded_images(folder / "pets")
    store_model(folder / "run", make_config(settings_of(source, backbone, **more)))
    return load_model(folder / "run", device="cpu")


@pytest.fixture(name="model", scope="module")
def model_fixture(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return stored(tmp_path_factory.mktemp("model"), make_config, "timm:test_resnet")


@pytest.fixture(name="plain", scope="module")
def plain_fixture(model: Classifier) -> onnx.ModelProto:
    return onnx_file.to_onnx(PixelNetwork(model.module, 3).eval(), model.card.side)


@pytest.fixture(name="exports", scope="module")
def exports_fixture(model: Classifier) -> dict[str, Export]:
    public = trial_pixels(model.card.side)
    return {kind: export_model(model, kind, calibration=public) for kind in get_args(Format)}


def logits_of(content: bytes, pixels: np.ndarray) -> np.ndarray:
    """Run an exported file without any code of Bract."""
    if content.startswith(b"PK"):
        return torch.export.load(io.BytesIO(content)).module()(torch.from_numpy(pixels)).detach().numpy()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": pixels})[0])


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= ALLOWED * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_a_file_gives_the_logits_of_its_model_for_any_number_of_images(
    model: Classifier, exports: dict[str, Export], kind: str
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = model.module(model.module.prepare(pixels)).numpy()

    assert_near(logits_of(exports[kind].content, pixels), wanted)
    assert_near(logits_of(exports[kind].content, pixels[:1]), wanted[:1])
    assert exports[kind].error <= ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "more"),
    [
        ("efficientnet_lite0", {"data__image_size": 128}),
        pytest.param("resnet18", {"data__image_size": 128}, marks=pytest.mark.soak),
        pytest.param("mobilenet_v3_small", {"data__image_size": 128}, marks=pytest.mark.soak),
        pytest.param("convnext_atto", {"data__image_size": 128}, marks=pytest.mark.soak),
        ("vit_tiny_patch16_224", {"data__image_size": 224}),
        ("timm:test_resnet", {"model__tuning": "norm"}),
        pytest.param("timm:test_resnet", {"model__head": "mlp"}, marks=pytest.mark.soak),
        ("timm:test_resnet", {"model__tuning": "lora"}),
        ("cnn", {}),
    ],
)
def test_onnx_gives_the_logits_of_every_kind_of_backbone(
    tmp_path: Path, make_config: MakeConfig, backbone: str, more: dict[str, Any]
) -> None:
    weights = {} if backbone in ("efficientnet_lite0", "cnn") else {"model__weights": "random"}
    model = stored(tmp_path, make_config, backbone, **more, **weights)
    pixels = trial_pixels(model.card.side)
    with torch.inference_mode():
        wanted = model.module(model.module.prepare(pixels)).numpy()

    found = logits_of(export_model(model, "onnx").content, pixels)

    assert_near(found, wanted)


def test_a_model_of_grey_images_takes_rgb_and_converts_it_as_pillow_does(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "grey" / name).mkdir(parents=True)
        for at in range(4):
            Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(tmp_path / "grey" / name / f"{at}.png")
    store_model(tmp_path / "run", make_config(settings_of(tmp_path / "grey", "cnn", data__image_size=8)))
    model = load_model(tmp_path / "run", device="cpu")
    colours = rng.integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])[..., None]

    network = PixelNetwork(model.module, model.card.channels)
    with torch.inference_mode():
        found = network(torch.from_numpy(colours)).numpy()
        wanted = model.module(model.module.prepare(grey)).numpy()

    assert model.card.channels == 1
    assert np.array_equal(network.channels(torch.from_numpy(colours)).permute(0, 2, 3, 1).numpy(), grey)
    assert_near(found, wanted)


def test_a_file_of_8_bits_is_smaller_and_keeps_most_classes(model: Classifier, exports: dict[str, Export]) -> None:
    small = exports["onnx-int8"]
    kinds = {node.op_type for node in onnx.load_from_string(small.content).graph.node}

    assert len(small.content) < len(exports["onnx"].content)
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert 0 < small.error < 1
    assert agreement(small, trial_pixels(model.card.side)) >= 0.5
    assert agreement(exports["onnx"], trial_pixels(model.card.side)) == 1.0


@pytest.mark.parametrize(("reduced", "largest"), [(True, 64), (False, 127)])
def test_weights_have_one_scale_a_channel_and_7_bits_on_request(
    plain: onnx.ModelProto, reduced: bool, largest: int
) -> None:
    graph = quantise(plain, trial_pixels(32), reduce_range=reduced).graph

    weights = [numpy_helper.to_array(part) for part in graph.initializer if part.data_type == onnx.TensorProto.INT8]
    filters = [array for array in weights if array.ndim == 4]
    scales = [numpy_helper.to_array(part) for part in graph.initializer if part.name.endswith("_scale")]
    assert filters
    assert max(int(np.abs(array.astype(int)).max()) for array in filters) == largest
    assert {array.shape[0] for array in filters} <= {array.shape[0] for array in scales if array.ndim}


def test_a_file_says_classes_scaling_and_privacy(exports: dict[str, Export]) -> None:
    for kind in ("onnx", "onnx-int8"):
        facts = {p.key: p.value for p in onnx.load_from_string(exports[kind].content).metadata_props}
        assert json.loads(facts["classes"]) == list(CLASSES)
        assert json.loads(facts["preprocessing"])["image_size"] == 32
        assert facts["privacy"].startswith("NOT PRIVATE")
        # What was measured on images is said where it was, and nowhere else.
        assert ("calibration" in facts) == (kind == "onnx-int8")

    read = {"classes": "", "privacy": ""}
    torch.export.load(io.BytesIO(exports["torch-export"].content), extra_files=read)
    assert json.loads(read["classes"]) == list(CLASSES)
    assert read["privacy"].startswith("NOT PRIVATE")


def test_no_file_holds_a_pickle_or_a_path_of_this_machine(exports: dict[str, Export]) -> None:
    archive = zipfile.ZipFile(io.BytesIO(exports["torch-export"].content))
    parts = {name: archive.read(name) for name in archive.namelist()}

    for name, content in parts.items():
        # A pickle of torch is a zip in the zip, a plain one begins with its protocol.
        assert not content.startswith((b"PK", b"\x80")) or "/weights/weight_" in name, name
        assert not content or "sample_inputs" not in name
    for name in ("weights/model_weights_config.json", "constants/model_constants_config.json"):
        config = next(content for part, content in parts.items() if part.endswith(name))
        assert b'"use_pickle": true' not in config
    everything = [*parts.values(), *(exports[kind].content for kind in ("onnx", "onnx-int8"))]
    for place in (str(ROOT), str(Path.home()), torch.__file__, ".py"):
        assert not [content[:40] for content in everything if place.encode() in content], place


def test_equal_models_give_equal_files(model: Classifier, plain: onnx.ModelProto, exports: dict[str, Export]) -> None:
    assert onnx_file.with_metadata(plain, metadata_of(model.card)) == exports["onnx"].content


def test_a_file_with_other_logits_is_refused(
    model: Classifier, plain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(plain)
    for part in changed.graph.initializer:
        array = numpy_helper.to_array(part)
        if array.ndim == 4:
            part.CopyFrom(numpy_helper.from_array(np.array(array * np.float32(1.01)), part.name))
    monkeypatch.setattr(formats, "to_onnx", lambda network, side: changed)

    with pytest.raises(ModelError, match="differs from the original"):
        export_model(model, "onnx")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(wrong: float) -> None:
    def original(pixels: np.ndarray) -> np.ndarray:
        return np.ones((len(pixels), 2), np.float32)

    assert check_equal(original, original, 8) == 0.0
    with pytest.raises(ModelError):
        check_equal(lambda pixels: original(pixels) * np.float32(wrong), original, 8)
