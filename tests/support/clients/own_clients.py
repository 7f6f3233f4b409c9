"""Clients with images of their own, asked as a server asks them: through real messages."""

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

import client.app as client_app
from client.setup.init_client import init_client
from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.messages.codec import PROTOCOL_VERSION, arrays_to_record
from common.models.initialization import initial_arrays
from common.system.progress import no_progress

MakeConfig = Callable[..., RunConfig]
CLASSES = ("dark", "bright")
# Fast: a small network from scratch, and a plan whose accounting takes milliseconds.
SMALL: dict[str, Scalar] = {
    "model.backbone": "cnn",
    "data.source": "clients",
    "data.classes": ",".join(CLASSES),
    "data.image-size": 8,
    "num-rounds": 2,
    "num-clients": 1,
    "training.local-epochs": 1,
    "training.batch-size": 64,
    "privacy.target-epsilon": 4.0,
}
POLICY = 'max-epsilon = 5.0\ndelta = 1e-5\ntunings = ["full"]\nmetrics = ["none", "private"]\n'


def picture(number: int, label: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 100, (8, 8, 3)) + 120 * label
    return Image.fromarray(pixels.astype(np.uint8))


def write_images(folder: Path, numbers: range, suffix: str = ".png") -> Path:
    """One image a number, the even ones dark, the odd ones bright."""
    for number in numbers:
        place = folder / CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).save(place / f"{number:04d}{suffix}")
    return folder


def run_named(name: str) -> str:
    """The id of a run that a test calls by a name."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


class OwnClient:
    """A client over a folder, with a policy, in a folder of its own."""

    def __init__(self, root: Path, images: Path, policy: str = POLICY, name: str | None = None) -> None:
        self.folder = root / f"client-{secrets.token_hex(4)}"
        self.folder.mkdir(parents=True)
        (self.folder / "policy.toml").write_text(policy)
        init_client(self.folder, str(images), path="", name=name or self.folder.name, progress=no_progress)

    def ask(
        self,
        config: RunConfig,
        kind: str,
        *,
        run: str,
        server_round: int = 1,
        fill: float = 0.0,
        node: dict[str, Scalar] | None = None,
        **extra: Scalar,
    ) -> Message:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        client_app.SESSIONS.clear()  # a client process a message, as on the deployment runtime
        settings = ConfigRecord(
            {"run-id": run_named(run), **({"protocol": PROTOCOL_VERSION} if kind == "query" else {}), **extra}
        )
        content = RecordDict({"config": settings})
        if kind in ("train", "evaluate"):
            settings["server-round"] = server_round
            start = initial_arrays(config, (8, 8, 3), CLASSES)
            content["arrays"] = arrays_to_record({name: array + np.float32(fill) for name, array in start.items()})
        own = {"bract-client": str(self.folder)} | (node or {})
        context = Context(1, 2, own, RecordDict(), resolved(config))
        return client_app.app(Message(content, 2, kind), context)


def code(reply: Message) -> str:
    """What an answer comes to: `ok`, or the failure's code."""
    return str(reply.error.reason) if reply.has_error() else "ok"
