"""Configurations, and what is sent to the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

import detkit
from detkit.config import dump_config, load_config, parse_config, parse_yaml
from detkit.engine.settings import RunConfig
from detkit.serve.app import build_app
from detkit.serve.service import Served, Service
from detkit.serve.settings import ServeConfig
from detkit.structures import Categories
from tests.fuzz.data_targets import picture_seeds
from tests.fuzz.harness import Target, message_fault
from tests.fuzz.trees import as_yaml, from_trees
from tests.serve.support import NAMES, Detector

CONFIGS = Path(detkit.__file__).parent / "configs"


def config(folder: Path) -> Target:
    files = sorted(CONFIGS.rglob("*.yaml"))
    seeds = [file.read_bytes() for file in files]
    trees = [yaml.safe_load(seed) for seed in seeds]
    words = sorted(
        {key.encode() for tree in trees for section in tree.values() if isinstance(section, dict) for key in section}
    )

    def read(path: Path) -> object:
        loaded = load_config(path, RunConfig)
        assert parse_config(parse_yaml(dump_config(loaded), "dumped"), RunConfig) == loaded
        return loaded

    return Target("config", seeds, read, ".yaml", words, from_trees(trees, as_yaml, words))


# ---- the server

ALLOWED = (200, 413, 415, 422)
QUERY_WORDS = (
    *(b"score_threshold", b"max_detections", b"classes", b"masks", b"red", b"blue", b"=", b"&", b";", b",", b"%00"),
    *(b"%", b"%ff", b"%ed%a0%80", b"%E2%80%A8", b"%0a", b"+", b"true", b"image/png", b"multipart/form-data"),
)


def server(folder: Path) -> Target:
    """A file is a query and a content type, a line each, and the body of `POST /predict`."""
    served = Served("stand-in", Categories.of_names(NAMES), "cpu", _forgetful, lambda size: size)
    service = Service(served, ServeConfig(max_wait_ms=0))
    app, loop = build_app(service), asyncio.new_event_loop()

    def read(path: Path) -> object:
        head, _, rest = path.read_bytes().partition(b"\n")
        kind, _, body = rest.partition(b"\n")
        status, answer = loop.run_until_complete(_ask(app, head, kind, body))
        content = json.loads(answer)
        assert status in ALLOWED, (status, content)
        fault = None if status == 200 else message_fault(content["error"])
        assert fault is None, (fault, content)
        return status

    heads = (b"\n\n", b"score_threshold=0.5&classes=red,blue&max_detections=2&masks=0\nimage/png\n")
    seeds = [head + body for head in heads for body in picture_seeds()]
    return Target("server", seeds, read, ".http", QUERY_WORDS, _change_head)


def _forgetful(images: Sequence[Any]) -> Any:
    """Does not keep the pictures, as `Detector` does."""
    return Detector()(images)


def _change_head(rng: Random, data: bytes) -> bytes:
    """Another query before the body."""
    head = b"".join(rng.choice(QUERY_WORDS) for _ in range(rng.randrange(9)))
    return head.replace(b"\n", b"") + b"\n" + data.partition(b"\n")[2]


async def _ask(app: Any, query: bytes, kind: bytes, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer, by ASGI and without a socket."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": query,
        "headers": [(b"host", b"localhost"), (b"content-type", kind), (b"content-length", str(len(body)).encode())],
        "server": ("localhost", 80),
        "client": ("localhost", 1),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])
