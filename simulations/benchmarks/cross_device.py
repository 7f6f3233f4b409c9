"""The benchmark of many small clients, beside pfl and BlazeFL."""

from pathlib import Path
from typing import Any

from common.system.threads import num_cores
from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant
from simulations.benchmarks.peers.small_images import MADE_UP
from simulations.benchmarks.simulated_run import run_simulation, seconds_a_round

_HERE = "simulations.benchmarks.cross_device"
_PFL, _BLAZEFL = "pfl==0.6.0 torch", "blazefl==2.0.3 torch tqdm"


def _cases(options: Options) -> list[Case]:
    sizes: dict[str, Any] = {"num_clients": 1000, "per_client": 50, "cohort": 50, "num_rounds": 30, "num_test": 1000}
    if options.quick:
        sizes = {"num_clients": 20, "per_client": 20, "cohort": 4, "num_rounds": 3, "num_test": 20}
    sizes |= {"batch": 10, "learning_rate": 0.05, "data": options.data}
    cases = []
    for name in ("cnn", "pfl's"):
        folder = f"cross-device-{'own' if name == 'cnn' else 'pfl'}"
        parameters = {**sizes, "network": name, "folder": folder}
        # Of these programs each would take all cores of the machine, also those that it may not use.
        of_others = {**parameters, "cores": num_cores()}
        variants = [
            Variant("Bract", f"{_HERE}:run_bract", parameters),
            Variant("pfl", "pfl_rounds.py", of_others, ("pfl", "torch"), environment="pfl", install=_PFL),
        ]
        variants += [
            Variant(
                f"BlazeFL, {mode}",
                "blazefl_rounds.py",
                {**of_others, "mode": mode},
                ("blazefl", "torch"),
                environment="blazefl",
                install=_BLAZEFL,
            )
            for mode in ("processes", "threads")
        ]
        title = f"{name} network, {sizes['num_clients']:,} clients of {sizes['per_client']}, cohort {sizes['cohort']}"
        cases.append(Case(title, tuple(variants), prepare=f"{_HERE}:prepare"))
    return cases


def prepare(
    *,
    data: str,
    num_clients: int,
    per_client: int,
    num_test: int,
    network: str,
    folder: str,
    scratch: str,
) -> None:
    """Write the images and the weights that all sides start from.

    Args:
        data: Folder with CIFAR-10, or empty.
        num_clients: Number of clients.
        per_client: Training images of each.
        num_test: Test images of all.
        network: Name of the network.
        folder: Where to write, in the shared folder.
        scratch: The shared folder.
    """
    import numpy as np

    from common.models.small_cnn import initial_cnn
    from simulations.benchmarks.peers.small_images import write_images

    place = Path(scratch) / folder
    write_images(place, data=data, num_train=num_clients * per_client, num_test=num_test)
    _use_network(network)
    weights = initial_cnn((32, 32, 3), 10, np.random.default_rng(0))
    np.savez(place / "initial.npz", **weights)  # type: ignore[arg-type]


def run_bract(
    *,
    num_clients: int,
    cohort: int,
    num_rounds: int,
    batch: int,
    network: str,
    learning_rate: float,
    folder: str,
    repeat: int,
    scratch: str,
) -> dict[str, float]:
    """Run a simulation in this process.

    Args:
        num_clients: Number of clients.
        cohort: Clients of a round.
        num_rounds: Number of rounds.
        batch: Images of a step.
        network: Name of the network.
        learning_rate: Learning rate.
        folder: Folder of the images, in the shared folder.
        repeat: Seed.
        scratch: The shared folder.
    """
    place = Path(scratch) / folder
    _use_network(network)
    _use_weights(place / "initial.npz")
    chosen: dict[str, Any] = {
        "seed": repeat,
        "data.source": "cifar10",
        "data.path": str(place),
        "data.partitioner": "iid",
        "model.backbone": "cnn",
        "num-clients": num_clients,
        "client-fraction": cohort / num_clients,
        "num-rounds": num_rounds,
        "training.local-epochs": 1,
        "training.batch-size": batch,
        "training.learning-rate": learning_rate,
        "privacy.mechanism": "none",
        "evaluation.every": num_rounds,
    }
    summary, run = run_simulation(chosen, scratch)
    # With checkpoints and files, because peers are timed with all that happens between their rounds.
    return {"rounds_a_second": 1 / seconds_a_round(run), "accuracy": summary["accuracy"]}


def _use_network(name: str) -> None:
    """Put a network in the place of the small one, in this process."""
    import common.models.classifier
    import common.models.small_cnn
    from simulations.benchmarks.peers.networks import NETWORKS, LargeCnn

    if NETWORKS[name] is LargeCnn:

        class LargeNetwork(LargeCnn, common.models.classifier.CnnNetwork):
            """The large network, used like the small one."""

        common.models.small_cnn.SmallCnn = LargeCnn  # type: ignore[misc]
        common.models.classifier.CnnNetwork = LargeNetwork  # type: ignore[misc]


def _use_weights(file: Path) -> None:
    """Start runs of this process from stored weights."""
    import numpy as np

    import common.models.small_cnn

    with np.load(file) as arrays:
        weights = {key: arrays[key] for key in arrays.files}
    common.models.small_cnn.initial_cnn = lambda *_, **__: dict(weights)


BENCHMARK = Benchmark(
    "cross-device",
    "Rounds a second of many small clients that train a network, beside pfl and BlazeFL.",
    "60 minutes",
    (
        Figure("rounds_a_second", "rounds/s", larger_is_better=True),
        Figure("cpu_seconds", "CPU s"),
        Figure("accuracy", "accuracy", larger_is_better=True, compared=False),
        Figure("wall_seconds", "s of the process"),
    ),
    _cases,
    notes=(
        "All sides train the same network from the same weights with plain SGD in batches of 10 for one epoch, "
        "without privacy, and use all cores. Rounds a second leave the first round out; CPU seconds and those of the "
        "process have everything. Bract also asks all clients who they are and evaluates the last model at each.",
        MADE_UP,
    ),
)
