"""A process that computes features while its caller does other work.

It needs seconds to import torch, and its caller may never need torch. What it computes is only in the store: a caller
whose process has failed finds what is missing there and computes it itself, so no result depends on the process.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from queue import SimpleQueue
from typing import IO, cast

import numpy as np

from common.config.sections import ModelConfig
from common.data.inputs.input_format import features_format, open_collector, open_store
from common.errors import BractError
from common.models.backbone_info import backbone_info
from common.models.engines.feature_engine import CHUNK
from common.models.names import BackboneSpec

# The folder in which a user works may have modules of the same names, so it is no place to import from.
_CODE = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import main; main()"
_READY = b"ready\n"
_DIGEST_BYTES, _COUNT_BYTES = 32, 4
Feed = Callable[["FeatureProcess"], None]
_logger = logging.getLogger("bract")


class FeatureProcess:
    """A process that takes scaled images and stores their features.

    It ends by itself when its caller does. `ready` is true once the facts about the backbone are in the cache, where
    `backbone_info` finds them without torch.
    """

    def __init__(self, model: ModelConfig, spec: BackboneSpec, device: str) -> None:
        self.ready = False
        self._feeds: SimpleQueue[Feed | None] = SimpleQueue()
        self._images: list[np.ndarray] = []
        self._digests: list[bytes] = []
        path = json.dumps([os.path.abspath(place) for place in sys.path])
        # Ctrl-C reaches all processes of a terminal's session. Only the caller handles it, and then ends this one.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _CODE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        order = [model.model_dump_json(), asdict(spec), device, _logger.level]
        with contextlib.suppress(BrokenPipeError):
            self._send(json.dumps(order).encode() + b"\n")
        # A daemon, because nothing it does must keep an interrupted command alive.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """True if the process has ended before it had stored all that it got."""
        return self._process.poll() not in (None, 0)

    def start(self, feed: Feed) -> None:
        """Call `feed` with this process in a thread, once it is ready."""
        self._feeds.put(feed)

    def push_pixels(self, pixels: np.ndarray, digest: bytes) -> None:
        """Send one image (side, side, channels).

        Raises:
            BrokenPipeError: The process has ended.
        """
        self._images.append(pixels)
        self._digests.append(digest)
        if len(self._images) == CHUNK:
            self._send_images()

    def wait(self, seconds: float) -> bool:
        """Return whether what `start` began has ended within some seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def kill(self) -> None:
        """End the process, unless it has ended."""
        self._process.kill()
        self._feeds.put(None)
        self._thread.join()
        cast(IO[bytes], self._process.stdout).close()

    def _run(self) -> None:
        # What goes wrong here goes wrong again where the caller computes what is missing, and is told there.
        with contextlib.suppress(OSError, BractError):
            self.ready = cast(IO[bytes], self._process.stdout).readline() == _READY
            feed = self._feeds.get() if self.ready else None
            if feed is not None:
                feed(self)
                self._send_images()
                self._send(bytes(_COUNT_BYTES))
        # Without the message above, the end of the pipe makes the process fail. It may hold bytes that nobody takes.
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], self._process.stdin).close()
        self._process.wait()

    def _send_images(self) -> None:
        if self._images:
            count = len(self._images).to_bytes(_COUNT_BYTES, "big")
            self._send(b"".join([count, *self._digests, *(pixels.tobytes() for pixels in self._images)]))
            self._images, self._digests = [], []

    def _send(self, content: bytes) -> None:
        pipe = cast(IO[bytes], self._process.stdin)
        pipe.write(content)
        pipe.flush()


def main() -> None:
    """Compute features as the process of a `FeatureProcess`.

    Ends with 1 where its caller must look for itself why there are no features.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not reach the caller as an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    model, spec, device, level = json.loads(sys.stdin.buffer.readline())
    _logger.setLevel(level)
    try:
        _compute(ModelConfig.model_validate_json(model), BackboneSpec(**spec), device, answers)
    except (BractError, OSError):
        sys.exit(1)


def _compute(model: ModelConfig, spec: BackboneSpec, device: str, answers: int) -> None:
    from common.models.classifier import feature_network

    wanted = features_format(backbone_info(spec), model, device)
    os.write(answers, _READY)
    store = open_store(wanted, model.backbone)
    with open_collector(store, wanted, lambda: feature_network(model, spec), device, lambda _: None) as collector:
        for pixels, digest in _received(sys.stdin.buffer, (wanted.side, wanted.side, wanted.channels)):
            collector.push_pixels(pixels, digest)


def _received(stream: IO[bytes], shape: tuple[int, int, int]) -> Iterator[tuple[np.ndarray, bytes]]:
    """Yield the images that the caller sends.

    Raises:
        BrokenPipeError: The caller has ended.
    """
    size = int(np.prod(shape))
    while count := int.from_bytes(_read(stream, _COUNT_BYTES), "big"):
        digests = _read(stream, count * _DIGEST_BYTES)
        pixels = np.frombuffer(_read(stream, count * size), np.uint8).reshape(count, *shape)
        for row in range(count):
            yield pixels[row], digests[row * _DIGEST_BYTES : (row + 1) * _DIGEST_BYTES]


def _read(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise BrokenPipeError
    return content
