"""Federated averaging under pfl, with a process a core."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def _train(settings: dict[str, Any], result: Path) -> None:
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    from simulations.benchmarks.peers.networks import accuracy_of, clients_of, initial_network

    torch.set_num_threads(1)
    np.random.seed(settings["repeat"])
    folder = Path(settings["scratch"]) / settings["folder"]
    network: Any = initial_network(settings["network"], folder)
    # pfl asks a module for its loss and its metrics.
    network.loss = lambda x, y, **_: torch.nn.functional.cross_entropy(network(x), y)
    network.metrics = lambda x, y, **_: {"loss": Weighted(0.0, len(y))}  # noqa: ARG005
    clients = clients_of(folder, settings["per_client"])
    sampler = get_user_sampler("minimize_reuse", list(range(len(clients))))
    data = FederatedDataset(lambda user: Dataset(clients[user], user_id=str(user)), sampler)
    ends: list[float] = []

    class Clock(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *_: Any, **__: Any) -> Any:
            ends.append(time.perf_counter())
            return False, Metrics()

    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), 1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(settings["num_rounds"], settings["num_rounds"] + 1, settings["cohort"], None),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(
            local_batch_size=settings["batch"],
            local_num_epochs=1,
            local_learning_rate=settings["learning_rate"],
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Clock()],
        send_metrics_to_platform=False,
    )
    # The first round opens the workers on all sides.
    rate = (len(ends) - 1) / (ends[-1] - ends[0])
    if os.environ.get("RANK", "0") == "0":
        result.write_text(json.dumps({"rounds_a_second": rate, "accuracy": accuracy_of(network, folder)}))


def main() -> None:
    """Start the processes that train."""
    settings = json.loads(sys.argv[1])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _train(settings, Path(sys.argv[2]))
        return
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings['cores']}"]
    sys.exit(subprocess.run([*launch, __file__, *sys.argv[1:]], check=False).returncode)  # noqa: S603


if __name__ == "__main__":
    main()
