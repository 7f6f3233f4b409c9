"""The benchmark of engines, with one app that does nothing but answer."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant

_HERE = "simulations.benchmarks.engine"
# Head of EfficientNet-Lite0 for ten classes, 51 kB.
_SHAPE = (1280, 10)
_WARM_UP = 8
# Number of clients -> rounds.
_ROUNDS = {10: 60, 100: 6, 1000: 2}


def _cases(options: Options) -> list[Case]:
    sizes = {4: 2} if options.quick else _ROUNDS
    return [
        Case(
            f"{num_clients:,} clients, {num_rounds} rounds",
            tuple(
                Variant(
                    name,
                    f"{_HERE}:{function}",
                    {"num_clients": num_clients, "num_rounds": num_rounds},
                    needs=needs,
                    install="'bract[ray]'",
                )
                for name, function, needs in (
                    ("in-process", "run_in_process_engine", ()),
                    ("Flower's Ray simulation", "run_ray_engine", ("ray",)),
                )
            ),
        )
        for num_clients, num_rounds in sizes.items()
    ]


client_app = ClientApp()


@client_app.train()
def _answer(message: Message, _: Context) -> Message:
    """Send the arrays back."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def _round(grid: Grid, nodes: list[int], arrays: ArrayRecord) -> None:
    messages = [Message(RecordDict({"arrays": arrays}), node, "train") for node in nodes]
    replies = list(grid.send_and_receive(messages))
    if len(replies) != len(nodes) or any(reply.has_error() for reply in replies):
        raise RuntimeError("a client did not answer")


class _Clock:
    """Server app that times its messages."""

    def __init__(self, num_clients: int, num_rounds: int) -> None:
        self.num_messages = num_clients * num_rounds
        self.first = self.last = 0.0
        self.server_app = ServerApp()

        @self.server_app.main()
        def main(grid: Grid, context: Context) -> None:
            del context
            nodes = list(grid.get_node_ids())
            while len(nodes) < num_clients:
                time.sleep(0.01)
                nodes = list(grid.get_node_ids())
            arrays = ArrayRecord([np.zeros(_SHAPE, np.float32)])
            # Ray starts its workers at the first messages. They count as start-up.
            _round(grid, nodes[:_WARM_UP], arrays)
            self.first = time.perf_counter()
            for _ in range(num_rounds):
                _round(grid, nodes, arrays)
            self.last = time.perf_counter()

    def figures(self, start: float) -> dict[str, float]:
        """Return the figures of an engine that was called at `start`."""
        messages = self.last - self.first
        whole = time.perf_counter() - start
        return {
            "messages_seconds": messages,
            "messages_a_second": self.num_messages / messages,
            "start_up_seconds": whole - messages,
            "engine_seconds": whole,
        }


def run_in_process_engine(*, num_clients: int, num_rounds: int) -> dict[str, float]:
    """Run the app in this process.

    Args:
        num_clients: Number of clients.
        num_rounds: Rounds in which each gets one message.
    """
    from simulations.engines.in_process import run_in_process

    start, clock = time.perf_counter(), _Clock(num_clients, num_rounds)
    run_in_process(clock.server_app, client_app, {}, num_clients=num_clients)
    return clock.figures(start)


def run_ray_engine(*, num_clients: int, num_rounds: int) -> dict[str, float]:
    """Run the app under Flower's own simulation with one core a client.

    Args:
        num_clients: Number of clients.
        num_rounds: Rounds in which each gets one message.
    """
    from flwr.simulation import run_simulation

    start, clock = time.perf_counter(), _Clock(num_clients, num_rounds)
    resources: dict[
        str, int | float | str | bytes | bool | list[int] | list[float] | list[str] | list[bytes] | list[bool]
    ]
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(clock.server_app, client_app, num_clients, backend_config={"client_resources": resources})
    return clock.figures(start)


BENCHMARK = Benchmark(
    "engine",
    "Messages a second of one app that only answers, in this process and under Flower's Ray simulation.",
    "30 minutes",
    (
        Figure("messages_a_second", "messages/s", larger_is_better=True),
        Figure("engine_seconds", "s with start-up"),
        Figure("start_up_seconds", "start-up s", compared=False),
        Figure("cpu_seconds", "CPU s of the process"),
    ),
    _cases,
    notes=(
        "A message carries 51 kB. Start-up begins with the call of the engine, after all imports. It includes eight "
        "messages that start Ray's workers, and the engine's end.",
    ),
)
