"""Federated averaging under BlazeFL, with a process or a thread a core."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from simulations.benchmarks.peers.networks import accuracy_of, clients_of, initial_network


class Clients:
    """The images of each client in a file, as in BlazeFL's own examples."""

    def __init__(self, folder: Path, per_client: int) -> None:
        self._folder = folder / "blazefl"
        self._folder.mkdir(exist_ok=True)
        for number, client in enumerate(clients_of(folder, per_client)):
            torch.save([part.clone() for part in client], self._folder / f"{number}.pt")

    def get_dataloader(self, type_: Any, cid: int | None, batch_size: int | None, generator: Any = None) -> Any:
        """Return the batches of a client."""
        del type_
        images = TensorDataset(*torch.load(self._folder / f"{cid}.pt"))
        return DataLoader(images, batch_size, shuffle=True, generator=generator)

    def set_dataset(self, type_: Any, cid: int | None, dataset: Any) -> None:
        """Keep the file of a client as it is."""


class Selector:
    """Maker of the network by its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def select_model(self, model_name: Any) -> torch.nn.Module:
        """Return the network that all sides start from."""
        torch.set_num_threads(1)
        network: torch.nn.Module = initial_network(str(model_name), self._folder)
        return network


def main() -> None:
    """Train for some rounds and write how fast they were."""
    from blazefl.contrib import fedavg
    from blazefl.core import IPCMode

    settings = json.loads(sys.argv[1])
    folder = Path(settings["scratch"]) / settings["folder"]
    num_clients = settings["num_clients"]
    selector, clients = Selector(folder), Clients(folder, settings["per_client"])
    common: dict[str, Any] = {"device": "cpu", "num_clients": num_clients, "seed": settings["repeat"]}
    common |= {"model_selector": selector, "model_name": settings["network"], "dataset": clients}
    common["batch_size"] = settings["batch"]
    server = fedavg.FedAvgBaseServerHandler(
        global_round=settings["num_rounds"], sample_ratio=settings["cohort"] / num_clients, **common
    )
    local = {"epochs": 1, "lr": settings["learning_rate"], "num_parallels": settings["cores"]}
    with tempfile.TemporaryDirectory() as shared:
        if settings["mode"] == "processes":
            place = Path(shared)
            trainer: Any = fedavg.FedAvgProcessPoolClientTrainer(
                share_dir=place, state_dir=place, ipc_mode=IPCMode.SHARED_MEMORY, **common, **local
            )
        else:
            trainer = fedavg.FedAvgThreadPoolClientTrainer(**common, **local)
        ends = []
        while not server.if_stop():
            trainer.local_process(server.downlink_package(), server.sample_clients())
            for package in trainer.uplink_package():
                server.load(package)
            ends.append(time.perf_counter())
    # The first round opens the workers on all sides.
    rate = (len(ends) - 1) / (ends[-1] - ends[0])
    figures = {"rounds_a_second": rate, "accuracy": accuracy_of(server.model, folder)}
    Path(sys.argv[2]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
