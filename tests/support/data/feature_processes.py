"""Processes that stand for the one of the backbone pass, and what they are asked for."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from common.config.loading import Scalar

COUNT = 40
TINY: dict[str, Scalar] = {"model.backbone": "timm:test_resnet", "model.weights": "random", "data.image-size": 32}


class Fake:
    """Stands for a process that fails once it got `most` images, and before it gets any if that is negative."""

    most: ClassVar[int] = 0
    started: ClassVar[list["Fake"]]

    def __init__(self, *_: object) -> None:
        self.failed, self.killed, self.rows = self.most < 0, False, 0
        self.ready = not self.failed
        self.feed: Callable[[Any], None] | None = None
        self.started.append(self)

    def start(self, feed: Callable[[Any], None]) -> None:
        self.feed = feed

    def push_pixels(self, pixels: np.ndarray, digest: bytes) -> None:
        assert (pixels.shape, len(digest)) == ((32, 32, 3), 32)
        if self.rows == self.most:
            raise BrokenPipeError
        self.rows += 1

    def wait(self, _: float) -> bool:
        if self.feed is not None:
            feed, self.feed = self.feed, None
            try:
                feed(self)
            except BrokenPipeError:
                self.failed = True
        return True

    def kill(self) -> None:
        self.killed = True


class Eager(Fake):
    """Stands for a process that takes images from the beginning, in a thread as the real one."""

    most: ClassVar[int] = 10**9
    started: ClassVar[list[Any]]

    def start(self, feed: Callable[[Any], None]) -> None:
        def run() -> None:
            with contextlib.suppress(BrokenPipeError):
                feed(self)

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def wait(self, seconds: float) -> bool:
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def kill(self) -> None:
        super().kill()
        self.thread.join()
