"""A server with a detector that finds what is drawn, and clients that behave well and badly."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import numpy as np
import torch
from PIL import Image

from detkit.nn.selection import KEYPOINT_SCORES
from detkit.serve.server import _bound, _Server
from detkit.serve.service import Served, Service
from detkit.serve.settings import ServeConfig
from detkit.structures import Categories, Detections, KeypointCategories, MaskCrops, Objects

NAMES = ("red", "green", "blue")


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (48, 64), corner: int = 8) -> np.ndarray:
    """uint8 RGB `[H, W, 3]`: white with a rectangle of 20 x 10 px (w x h) from (corner, corner) on."""
    image = np.full((*size, 3), 255, np.uint8)
    image[corner : corner + 10, corner : corner + 20] = colour
    return image


def encode(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def find_rectangle(image: np.ndarray) -> Detections:
    """Of `picture`: one detection. The brightest channel is the class, and its value in percent the score."""
    rows, columns = np.nonzero((image < 200).sum(axis=2) >= 2)
    if not len(rows):
        return detections([], [], [])
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    inner = image[int(rows.mean()), int(columns.mean())]
    return detections([box], [int(inner.argmax())], [int(inner.max()) / 255])


def find_parts(image: np.ndarray) -> Detections:
    """The same with a mask, its left half but for the upper right pixel of that, and with two keypoints, its corners,
    the second of which is unlikely."""
    plain = find_rectangle(image)
    return with_parts(plain, (image.shape[0], image.shape[1]))


def with_parts(plain: Detections, size: tuple[int, int]) -> Detections:
    x1, y1, x2, y2 = plain.boxes.unbind(dim=1)
    windows = torch.stack([x1, y1, (x1 + x2) / 2, y2], dim=1).long().numpy()
    crops = [np.ones((bottom - top, right - left), np.bool_) for left, top, right, bottom in windows.tolist()]
    for crop in crops:
        crop[0, -1] = False  # so that not every column has as many
    visible = torch.full_like(x1, 2)
    points = torch.stack([torch.stack([x1, y1, visible], dim=1), torch.stack([x2, y2, visible], dim=1)], dim=1)
    columns = {
        **plain.objects.columns(),
        "masks": MaskCrops.of(crops, windows).encode(size),
        "keypoints": points,
        KEYPOINT_SCORES: torch.tensor([[4.0, -1.0]]).expand(len(plain), 2),
    }
    categories = Categories(plain.categories.names, plain.categories.ids, KeypointCategories(("first", "last")))
    return Detections(Objects.from_columns(columns), categories)


def detections(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float], names: Sequence[str] = NAMES
) -> Detections:
    columns = Objects(
        torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
        torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
    return Detections(columns, Categories.of_names(names))


@dataclass
class Detector:
    """Records the batches that it is given; waits before each while `gate` is closed."""

    find: Callable[[np.ndarray], Detections] = find_rectangle
    names: Sequence[str] = NAMES
    batches: list[list[np.ndarray]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        self.batches.append(list(images))
        assert self.gate.wait(30)
        return [self.find(image) for image in images]


@dataclass
class Running:
    service: Service
    server: _Server
    port: int
    detector: Detector

    def ask(self, data: bytes | Iterator[bytes], query: str = "", **headers: str) -> tuple[int, Any]:
        """Status and content of the answer to `POST /predict`."""
        status, content, _ = self.call("POST", f"/predict{query}", data, headers)
        return status, content

    def call(
        self, method: str, path: str, data: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(text) if is_json else text.decode(), answer.headers

    def raw(self, head: str, body: bytes = b"") -> socket.socket:
        """A connection on which this was sent, with `\\n` between the lines of the head."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return connection

    def hold(self) -> None:
        """The detector is busy with a first picture until its gate opens."""
        before = len(self.detector.batches)
        self.detector.gate.clear()
        self.in_background(encode(picture((200, 0, 0))))
        wait_until(lambda: len(self.detector.batches) == before + 1)

    def in_background(self, data: bytes, query: str = "") -> Answer:
        return Answer(self, data, query)


class Answer(threading.Thread):
    """Asks in a thread of its own."""

    def __init__(self, running: Running, data: bytes, query: str) -> None:
        super().__init__(daemon=True)
        self.running, self.data, self.query = running, data, query
        self.answer: tuple[int, Any] | None = None
        self.start()

    def run(self) -> None:
        self.answer = self.running.ask(self.data, self.query)

    def result(self) -> tuple[int, Any]:
        self.join(30)
        assert self.answer is not None, "no answer"
        return self.answer


@contextmanager
def running(detector: Detector | None = None, **settings: Any) -> Iterator[Running]:
    """A server in a thread. Batches are of pictures of one size."""
    detector = detector or Detector()
    config = ServeConfig(port=0, **settings)
    with _bound(config) as listener:
        port = listener.getsockname()[1]
        served = Served("stand-in", Categories.of_names(detector.names), "cpu", detector, lambda size: size)
        service = Service(served, config)
        server = _Server(service, listener)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield Running(service, server, port, detector)
        finally:
            server.should_exit = True
            detector.gate.set()
            thread.join(30)
            service.close(5)
            assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "waited in vain"
        sleep(0.005)
