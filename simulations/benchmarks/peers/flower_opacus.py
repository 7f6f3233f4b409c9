"""A Flower app whose clients train a head with Opacus."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import functional

_SIDE, _WIDTH, _CLASSES = 128, 1280, 10


def _load(folder: str, part: str, client: int = 0, num_clients: int = 1) -> TensorDataset:
    with np.load(Path(folder) / "images.npz") as arrays:
        images, labels = arrays[f"{part}_x"][client::num_clients], arrays[f"{part}_y"][client::num_clients]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return TensorDataset((pixels - 127.0) / 128.0, torch.from_numpy(labels))


def _backbone(folder: str) -> nn.Module:
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    model.load_state_dict(torch.load(Path(folder) / "backbone.pt", weights_only=True), strict=False)
    return model.eval()


def _features(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        enlarged = functional.resize(images, [_SIDE, _SIDE], functional.InterpolationMode.BICUBIC)
        rows: torch.Tensor = nn.functional.normalize(backbone(enlarged))
    return rows


def _head(weight: torch.Tensor) -> nn.Module:
    head = nn.Linear(_WIDTH, _CLASSES, bias=False)
    head.load_state_dict({"weight": weight})
    return head


client_app = ClientApp()


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    """Train the head for one epoch under DP-SGD."""
    settings: dict[str, Any] = dict(message.content.config_records["config"])
    client, num_clients = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    images = _load(settings["folder"], "train", client, num_clients)
    backbone = _backbone(settings["folder"])
    head = _head(message.content.array_records["arrays"].to_torch_state_dict()["weight"])
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=head.train(),
        optimizer=torch.optim.SGD(head.parameters(), lr=settings["learning_rate"]),
        data_loader=DataLoader(images, batch_size=settings["batch"], shuffle=True),
        noise_multiplier=settings["noise"],
        max_grad_norm=settings["bound"],
    )
    loss_of = nn.CrossEntropyLoss()
    for pixels, labels in loader:
        optimizer.zero_grad()
        if len(labels):
            loss_of(model(_features(backbone, pixels)), labels).backward()
        optimizer.step()
    arrays = ArrayRecord({"weight": model._module.weight.detach()})
    metrics = MetricRecord({"num-examples": len(images), "epsilon": engine.get_epsilon(1e-5)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _server_app(settings: dict[str, Any], found: dict[str, Any]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=settings["num_clients"])
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord({"weight": torch.zeros(_CLASSES, _WIDTH)}),
            train_config=ConfigRecord(settings),
            num_rounds=settings["num_rounds"],
        )
        found["weight"] = result.arrays.to_torch_state_dict()["weight"]

    return app


def _accuracy(folder: str, weight: torch.Tensor) -> float:
    backbone, head, right = _backbone(folder), _head(weight), 0
    images = _load(folder, "test")
    for pixels, labels in DataLoader(images, batch_size=32):
        right += int((head(_features(backbone, pixels)).argmax(1) == labels).sum())
    return right / len(images)


def main() -> None:
    """Run the simulation and write what it found."""
    from flwr.simulation import run_simulation

    settings = json.loads(sys.argv[1])
    start = time.perf_counter()
    settings["folder"] = str(Path(settings["scratch"]) / "end-to-end")
    found: dict[str, Any] = {}
    resources: dict[str, Any] = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(_server_app(settings, found), client_app, settings["num_clients"], backend_config=resources)
    seconds = time.perf_counter() - start
    figures = {"job_seconds": seconds, "accuracy": _accuracy(settings["folder"], found["weight"])}
    Path(sys.argv[2]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
