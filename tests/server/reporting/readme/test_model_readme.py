"""A model's README says what the run found, and its code blocks run as they stand, without Bract.

Drives `server.reporting.readme.load_examples`.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from common.config.schema import RunConfig
from common.inference.classifier import load_model
from common.inference.export.formats import export_model
from common.models.loading import load_pretrained
from common.models.names import resolve_name
from server.reporting.readme.load_examples import torch_example
from server.reporting.readme.model_readme import model_readme
from tests.support.inference.stored_models import settings_of, shaded_images, store_model

MakeConfig = Callable[..., RunConfig]
STATEMENT = {"private": False, "statement": "NOT PRIVATE: updates and exact counts left every client"}
PRIVATE = {
    "private": True,
    "statement": "each image: epsilon <= 8.0000 at delta 1e-05",
    "accountant": "PLD",
    "charged": "rounds sent",
    "scope": "this run alone",
    "not_protected": ["the list of class names"],
}
SUMMARY: dict[str, Any] = {
    "status": "complete",
    "private": False,
    "accuracy": 0.8,
    "evaluated_examples": 10,
    "simulation_only": False,
    "private_metrics": None,
    "evaluated_model": 3,
    "final_model": 3,
    "stopped_early": False,
    "clients": 5,
    "rounds": 3,
    "rounds_planned": 3,
    "config": {"data.source": "digits", "strategy.name": "FedAvg"},
}
CARD: dict[str, Any] = {
    "classes": ["cat", "dog"],
    "backbone": "resnet18",
    "backbone_sha256": "ab" * 32,
    "weights": "",
    "head": "linear",
    "tuning": "head",
    "personal": "",
    "tensors": {"head.weight": [2, 512]},
    "preprocessing": {"image_size": 128, "channels": 3, "features": "signed square root", "resize": "bicubic"},
    "private": False,
    "warnings": [],
}


def readme(card: dict[str, Any] | None = None, statement: dict[str, Any] | None = None, **summary: Any) -> str:
    return model_readme(CARD | (card or {}), SUMMARY | summary, statement or STATEMENT, simulated=True)


def code_blocks(text: str) -> list[str]:
    """Return the code blocks, first the one of ONNX Runtime."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_alone(code: str, folder: Path) -> dict[str, float]:
    """Run a block without Bract, and return the probabilities that it prints."""
    # -I leaves this folder and PYTHONPATH out. The last line holds the block to its word.
    alone = "\nimport sys\nassert not {'bract', 'common', 'server', 'client'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code + alone],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: float(share) for name, _, share in (line.partition(": ") for line in done.stdout.splitlines())}


def photograph(folder: Path, size: tuple[int, int]) -> Path:
    """Write a photograph that lies on its side."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    coarse.save(folder / "photo.jpg", exif=exif, quality=95)
    return folder / "photo.jpg"


def weights_file(folder: Path, backbone: str) -> str:
    body, _ = load_pretrained(resolve_name(backbone), "random", side=32, seed=5)
    tensors = {name: value.contiguous() for name, value in body.model.state_dict().items()}
    save_file(tensors, folder / "body.safetensors")
    return str(folder / "body.safetensors")


@pytest.mark.parametrize(
    ("backbone", "more"),
    [
        pytest.param("cnn", {}, marks=pytest.mark.slow),
        pytest.param("timm:test_resnet", {"model__weights": "file"}, marks=pytest.mark.soak),
        ("timm:test_resnet", {"model__weights": "file", "model__tuning": "norm"}),
        pytest.param("timm:test_resnet", {"model__weights": "file", "model__head": "mlp"}, marks=pytest.mark.soak),
        pytest.param("timm:test_vit", {"model__weights": "file", "data__image_size": 96}, marks=pytest.mark.soak),
        pytest.param("efficientnet_lite0", {"data__image_size": 128}, marks=pytest.mark.slow),
    ],
)
def test_both_ways_of_the_readme_give_the_probabilities_of_bract(
    tmp_path: Path, make_config: MakeConfig, backbone: str, more: dict[str, Any]
) -> None:
    source = shaded_images(tmp_path / "pets")
    if "model__weights" in more:
        more = more | {"model__weights": weights_file(tmp_path, backbone)}
    store_model(tmp_path / "run", make_config(settings_of(source, backbone, **more)))
    folder = tmp_path / "run" / "model"
    if "model__weights" in more:
        shutil.copy(more["model__weights"], folder)
    model = load_model(folder, device="cpu")
    photo = photograph(folder, (200, 150))
    (folder / "model.onnx").write_bytes(export_model(model, "onnx").content)
    text = model_readme(json.loads((folder / "card.json").read_text()), SUMMARY, STATEMENT, simulated=True)
    with torch.inference_mode():
        logits = model.module(model.module.prepare(model.pixels(photo)))
    wanted = dict(zip(model.classes, logits.softmax(dim=1)[0].tolist(), strict=True))

    found = [run_alone(block, folder) for block in code_blocks(text)]

    assert len(found) == 2
    for shares in found:
        assert shares == pytest.approx(wanted, abs=2e-4)
    assert max(wanted.values()) - min(wanted.values()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "more"),
    [
        ("torchvision:resnet18", {"model__head": "mlp"}),
        pytest.param("mobilenet_v3_small", {"model__tuning": "norm"}, marks=pytest.mark.soak),
        pytest.param("torchvision:convnext_tiny", {}, marks=pytest.mark.soak),
    ],
)
def test_torchvision_alone_gives_the_probabilities_of_bract(
    tmp_path: Path, make_config: MakeConfig, backbone: str, more: dict[str, Any]
) -> None:
    file = weights_file(tmp_path, backbone)
    config = make_config(settings_of(shaded_images(tmp_path / "pets"), backbone, **more, model__weights=file))
    store_model(tmp_path / "run", config)
    folder = tmp_path / "run" / "model"
    shutil.copy(file, folder)
    model = load_model(folder, device="cpu")
    photo = photograph(folder, (200, 150))
    with torch.inference_mode():
        logits = model.module(model.module.prepare(model.pixels(photo)))

    code = torch_example(json.loads((folder / "card.json").read_text()))

    assert code is not None
    found = run_alone(code, folder)
    assert found == pytest.approx(dict(zip(model.classes, logits.softmax(dim=1)[0].tolist(), strict=True)), abs=2e-4)
    assert max(found.values()) - min(found.values()) > 0.01


@pytest.mark.parametrize(
    "card",
    [
        {"weights": "random"},
        {"backbone": "clip:ViT-B-32"},
        {"tuning": "lora"},
        {"preprocessing": CARD["preprocessing"] | {"features": "scaled to unit length for each image"}},
    ],
)
def test_no_code_is_shown_that_could_not_build_the_network(card: dict[str, Any]) -> None:
    assert torch_example(CARD) is not None
    assert torch_example(CARD | card) is None
    assert len(code_blocks(readme(card))) == 1


def test_the_head_is_what_the_hub_reads() -> None:
    head = yaml.safe_load(readme().split("---")[1])

    assert head["pipeline_tag"] == "image-classification"
    assert head["library_name"] == "timm"
    assert head["base_model"] == "timm/resnet18"
    assert head["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.8}]


def test_exact_figures_of_a_private_simulation_are_not_told() -> None:
    hidden = readme({"private": True}, PRIVATE, private=True, simulation_only=True)

    assert "0.8000" not in hidden
    assert "model-index" not in hidden
    assert PRIVATE["statement"] in hidden
    assert "- the list of class names" in hidden
    assert "differential-privacy" in hidden


def test_noised_and_exact_counts_have_an_interval_of_their_own() -> None:
    noised = {"accuracy": 0.7, "accuracy_stddev": 0.05, "evaluated_model": 3}

    released = readme({"private": True}, PRIVATE, private=True, simulation_only=True, private_metrics=noised)
    exact = readme({"private": True}, PRIVATE, private=True)

    assert "0.7000 on held-out images of the clients (95 %: 0.6020 to 0.7980, of the privacy noise alone)" in released
    assert "(95 %: 0.4902 to 0.9433, Wilson, 10 images)" in exact
    assert "no privacy statement covers them" in exact
    assert "no privacy statement covers them" not in readme()


def test_figures_of_an_earlier_model_are_not_told() -> None:
    noised = {"accuracy": 0.7, "accuracy_stddev": 0.05, "evaluated_model": 2}

    assert "0.8000" not in readme(evaluated_model=2)
    assert "0.7000" not in readme({"private": True}, PRIVATE, simulation_only=True, private_metrics=noised)


def test_a_folder_of_images_is_not_named() -> None:
    text = readme(config=SUMMARY["config"] | {"data.source": "/wards/miller/scans"})

    assert "miller" not in text
    assert "Images of a folder or a table" in text


def test_class_names_cannot_change_the_form_of_the_page() -> None:
    text = readme({"classes": ["a`b\n# Fake heading", "dog"]})

    assert "\n# Fake" not in text
    assert '`"a\\u0060b\\n# Fake heading"`, `"dog"`' in text


def test_a_model_whose_head_stays_with_the_clients_shows_no_way_to_use_it() -> None:
    text = readme({"personal": "head"})

    assert "this model alone classifies nothing" in text
    assert not code_blocks(text)
    assert not [word for word in ("bract predict", "bract export", "library_name") if word in text]


def test_torchvision_takes_its_published_weights_where_the_run_did() -> None:
    text = readme({"backbone": "torchvision:vit_b_16"})

    assert 'torchvision.models.vit_b_16(weights="DEFAULT")' in text
    assert "## Use it with torchvision alone" in text
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "pytorch"
