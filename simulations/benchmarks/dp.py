"""The benchmark of private training steps, beside plain ones and Opacus."""

import math
import resource
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant
from simulations.benchmarks.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch

    from common.data.client_dataset import Shard

_HERE = "simulations.benchmarks.dp"
_CLASSES = tuple(str(name) for name in range(10))
_BOUND = 1.0


def _cases(options: Options) -> list[Case]:
    side, images, batch, steps = (32, 8, 4, 2) if options.quick else (128, 64, 32, 8)
    head = {"shape": [1280], "number": 640, "steps": 10 if options.quick else 200}
    network = {"shape": [side, side, 3], "number": images, "batch": batch, "steps": steps}
    small = {"shape": [32, 32, 3], "number": 2 * batch, "batch": batch, "steps": steps}
    frozen = {"model.weights": "random", "data.image-size": side}
    cases = [
        _case("head, batches of 64", {**head, "batch": 64}, {}),
        _case("head, all 640 images in a batch", {**head, "batch": 640}, {}),
    ]
    # Most of a small run's time goes to the start of processes, and these tunings take all ways through the code.
    for tuning in ("norm", "lora") if options.quick else ("norm", "lora", "last:1", "full"):
        needs = ("peft",) if tuning == "lora" else ()
        name = f"{tuning}, batches of {batch} at {side} px"
        cases.append(_case(name, network, {**frozen, "model.tuning": tuning}, needs))
    cases.append(_case(f"cnn, batches of {batch} at 32 px", small, {"model.backbone": "cnn"}))
    return cases


def _case(name: str, sizes: dict[str, Any], settings: dict[str, Any], needs: tuple[str, ...] = ()) -> Case:
    parameters = {**sizes, "settings": settings}

    def variant(title: str, function: str, **more: Any) -> Variant:
        return Variant(title, f"{_HERE}:{function}", {**parameters, **more}, needs, install="'bract[lora]'")

    plain = variant("plain", "bract_steps", private=False)
    private = variant("private", "bract_steps", private=True)
    opacus = [variant(f"Opacus, {mode}", "opacus_steps", mode=mode) for mode in ("hooks", "ghost")]
    return Case(name, (plain, private, *opacus))


def _flat(settings: dict[str, Any], *, number: int, batch: int, steps: int, private: bool) -> dict[str, Any]:
    """Return complete settings for a client that takes `steps` steps a round."""
    from common.config.loading import defaults, override

    chosen = {
        "num-clients": 2,
        "training.learning-rate": 0.01,
        "training.local-epochs": max(1, steps * batch // number),
        "training.batch-size": batch,
        **settings,
    }
    chosen |= {"privacy.noise-multiplier": 1.0, "privacy.max-grad-norm": _BOUND} if private else {}
    return override(defaults(), chosen if private else {**chosen, "privacy.mechanism": "none"})


def bract_steps(
    *,
    shape: list[int],
    number: int,
    batch: int,
    steps: int,
    settings: dict[str, Any],
    private: bool,
    repeat: int,
) -> dict[str, float]:
    """Time a round of a client's own training.

    Args:
        shape: Shape of one example.
        number: Number of images.
        batch: Images of a step, the expected number under DP.
        steps: Steps of the round.
        settings: Settings of the run.
        private: Train under DP-SGD.
        repeat: Seed of the images.
    """
    from client.training.trainer import Trainer
    from common.config.loading import parse
    from common.models.initialization import initial_arrays
    from common.system.threads import pin_to_one_thread

    config = parse(_flat(settings, number=number, batch=batch, steps=steps, private=private))
    trainer, rows = Trainer(config, tuple(shape), _CLASSES), _shard(shape, number, repeat)
    arrays, plan = initial_arrays(config, tuple(shape), _CLASSES), config.plan(number) if private else None
    taken = plan.steps_per_round if plan is not None else config.local_epochs * -(-number // batch)

    def train(server_round: int) -> None:
        trainer.train(arrays, rows, name="client-0", server_round=server_round, plan=plan)

    # The network is built here, so that memory is counted beside it, as on Opacus' side.
    _ = trainer.trainable
    # As each client's process does. With torch loaded, since its threads are limited too.
    pin_to_one_thread()
    before = _peak_mb()
    train(1)
    with Stopwatch() as watch:
        train(2)
    return {
        "step_ms": 1000 * watch.wall / taken,
        "step_cpu_ms": 1000 * watch.cpu / taken,
        "step_mb": _peak_mb() - before,
    }


def opacus_steps(
    *,
    shape: list[int],
    number: int,
    batch: int,
    steps: int,
    settings: dict[str, Any],
    mode: str,
    repeat: int,
) -> dict[str, Any]:
    """Time steps of the same network under Opacus.

    Args:
        shape: Shape of one example.
        number: Number of images.
        batch: Images of a step.
        steps: Steps to time.
        settings: Settings of the run.
        mode: `hooks` or `ghost`.
        repeat: Seed of the images.
    """
    import torch

    torch.set_num_threads(1)
    rows = _shard(shape, number, repeat)
    inputs, network = _network(settings, shape, number, batch, rows.train_inputs)
    labels = torch.from_numpy(rows.train_labels)
    before = _peak_mb()
    try:
        step = _opacus_step(network, mode, batch)
        step(inputs[:batch], labels[:batch])
    except Exception as error:
        return {"not_possible": f"fails with {type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    order = np.random.default_rng(repeat)
    with Stopwatch() as watch:
        for _ in range(steps):
            chosen = order.choice(number, batch, replace=False)
            step(inputs[chosen], labels[chosen])
    return {
        "step_ms": 1000 * watch.wall / steps,
        "step_cpu_ms": 1000 * watch.cpu / steps,
        "step_mb": _peak_mb() - before,
    }


def _network(
    settings: dict[str, Any], shape: list[int], number: int, batch: int, images: np.ndarray
) -> "tuple[torch.Tensor, torch.nn.Module]":
    """Return inputs and the network as a user of Opacus would have them."""
    import torch

    from common.config.loading import parse
    from common.models.classifier import build_network

    if len(shape) == 1:
        return torch.from_numpy(images), torch.nn.Linear(shape[0], len(_CLASSES), bias=False)
    config = parse(_flat(settings, number=number, batch=batch, steps=1, private=True))
    network = build_network(config, tuple(shape), len(_CLASSES))
    inputs = network.prepare(images)
    _replace_frozen_norms(network)
    for layer in network.modules():
        if getattr(layer, "inplace", False):
            # Opacus' hooks need each layer's input unchanged.
            layer.inplace = False  # type: ignore[assignment]
    return inputs, network.train()


def _replace_frozen_norms(network: "torch.nn.Module") -> None:
    """Put GroupNorm in the place of each BatchNorm, as Opacus' own fixer does."""
    from torch import nn

    from common.models.frozen_batch_norm import FrozenBatchNorm

    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, FrozenBatchNorm):
                norm = nn.GroupNorm(math.gcd(32, len(layer.weight)), len(layer.weight))
                norm.requires_grad_(layer.weight.requires_grad)
                setattr(parent, name, nn.Sequential(norm, layer.act))


def _opacus_step(network: "torch.nn.Module", mode: str, batch: int) -> Any:
    from torch.nn import CrossEntropyLoss
    from torch.optim import SGD

    noise = {"noise_multiplier": 1.0, "max_grad_norm": _BOUND, "expected_batch_size": batch}
    plain = SGD([parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.01)
    if mode == "hooks":
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer

        wrapped: Any = GradSampleModule(network, strict=False)
        optimizer: Any = DPOptimizer(plain, **noise)
        loss_of: Any = CrossEntropyLoss()
    else:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        wrapped = GradSampleModuleFastGradientClipping(
            network, max_grad_norm=_BOUND, use_ghost_clipping=True, strict=False
        )
        optimizer = DPOptimizerFastGradientClipping(plain, **noise)
        loss_of = DPLossFastGradientClipping(wrapped, optimizer, CrossEntropyLoss())

    def step(inputs: "torch.Tensor", labels: "torch.Tensor") -> None:
        optimizer.zero_grad()
        loss_of(wrapped(inputs), labels).backward()
        optimizer.step()

    return step


def _shard(shape: list[int], number: int, seed: int) -> "Shard":
    from common.data.client_dataset import Shard
    from common.data.image_digests import ImageDigests
    from common.system.aligned_arrays import align_rows

    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        rows = rng.standard_normal((number, *shape)).astype(np.float32)
        # Aligned as a client's own features are. Others would be copied for each full batch.
        inputs = align_rows(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    else:
        inputs = rng.integers(0, 256, (number, *shape), dtype=np.uint8)
    labels, digests = np.arange(number) % len(_CLASSES), rng.integers(0, 256, (number, 32), dtype=np.uint8)
    units, no_digests = np.arange(number), np.zeros((0, 32), dtype=np.uint8)
    nothing = ImageDigests(no_digests, no_digests, units[:0], no_digests)
    return Shard(inputs, labels, inputs[:0], labels[:0], number, digests, units, units[:0], nothing, nothing)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


BENCHMARK = Benchmark(
    "dp",
    "Time and memory of a training step, private beside plain, and beside Opacus with hooks and ghost clipping.",
    "30 minutes",
    (
        Figure("step_ms", "ms a step"),
        Figure("step_cpu_ms", "CPU ms a step"),
        Figure("step_mb", "MB beside the network", compared=False),
    ),
    _cases,
    notes=(
        "Here x says how many times a plain step's time each other one takes. EfficientNet-Lite0, ten classes, one "
        "thread. Under Opacus the head's features are ready too, and its batches have exactly the "
        "expected size; a BatchNorm is a GroupNorm there, because Opacus refuses frozen statistics.",
    ),
)
