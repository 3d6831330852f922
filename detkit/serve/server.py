"""The start and the end of the server: socket, detector, signals."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from detkit.config import UserError
from detkit.engine.distributed import process_group
from detkit.engine.prediction.choice import notes_on_choice
from detkit.engine.prediction.inference import build_predict
from detkit.engine.prediction.settings import PredictionConfig
from detkit.engine.proposal_search import source_of
from detkit.engine.sources import load_detector
from detkit.engine.speed import for_prediction
from detkit.serve.app import build_app
from detkit.serve.service import Served, Service
from detkit.serve.settings import ServeConfig
from detkit.structures import Size

LOCAL = ("127.0.0.1", "::1", "localhost")
PATIENCE = 2.0  # s more than `stop_s`, in which those that are refused at the end get their answer


def serve(source: str, config: ServeConfig, *, device: str = "auto", overrides: Sequence[str] = ()) -> None:
    """Answers until SIGTERM, or Ctrl-C, which raises KeyboardInterrupt when all is answered.

    source     see `load_detector`
    overrides  changes of the detector's `model`

    Raises UserError if there is no such detector, or if the address cannot be used.
    """
    with _bound(config) as listener, process_group(device) as own_device:
        detector = for_prediction(load_detector(source, overrides)[0].to(own_device))
        if (clip := detector.input.clip) is not None:
            raise UserError(
                f"{source}: takes clips of {clip.frames} frames, and serve answers single pictures; use detkit predict"
            )
        prediction = PredictionConfig(score_threshold=config.score_threshold, batch_size=config.max_batch)
        predict = build_predict(detector, source_of(detector), prediction)
        for note in notes_on_choice(prediction, detector):
            print(f"note: {note}")

        def input_size(size: Size) -> Size:
            return detector.input.place(0, size).input_size

        served = Served(str(source), detector.categories, str(own_device), predict, input_size)
        run(Service(served, config), listener)


def run(service: Service, listener: socket.socket) -> None:
    """See `serve`. `listener` is bound to an address."""
    interrupted = False
    try:
        service.warm_up()
        _Server(service, listener).run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        ended = service.close(PATIENCE)
    if not ended:  # its thread is within torch, which must not be taken apart beside it
        print("the detector is still busy: the picture that it has is given up", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if interrupted else 0)
    if interrupted:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """Tells the service when to stop, and the user where it is."""

    def __init__(self, service: Service, listener: socket.socket) -> None:
        self.service, self.listener = service, listener
        stop_s = service.config.stop_s
        super().__init__(
            uvicorn.Config(
                build_app(service),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(stop_s + PATIENCE + 1),
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """A signal is raised again when all is done. SIGTERM would end the process with its status; it is no error."""
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            super().run(sockets or [self.listener])
        finally:
            signal.signal(signal.SIGTERM, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(_started(self.service, self.listener), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stopping = True
        asyncio.get_running_loop().call_later(self.service.config.stop_s, self.service.cut_off.set)
        await super().shutdown(sockets)


def _started(service: Service, listener: socket.socket) -> str:
    host, port = service.config.host, listener.getsockname()[1]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    num_classes = len(service.served.categories)
    classes = f"{num_classes} class{'es' if num_classes != 1 else ''}"
    line = f"detkit serves {service.served.source} ({classes}, {service.served.device}) at {address}"
    if host not in LOCAL:
        line += "\nwarning: whoever reaches this address can use it: there is no authentication and no encryption"
    return line


@contextmanager
def _bound(config: ServeConfig) -> Iterator[socket.socket]:
    """A socket that has the address but does not listen yet. Raises UserError if that cannot be."""
    where = f"{config.host}:{config.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {config.host}: no such address: {getattr(error, 'strerror', error)}") from error
    with listener:
        try:
            if os.name == "posix":  # else the port of a server that has just ended would be taken for a minute
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            reason = {
                errno.EADDRINUSE: "is taken by another program; choose another --port, or 0 for a free one",
                errno.EACCES: "is not yours to use; choose a --port from 1024 on",
                errno.EADDRNOTAVAIL: "is not an address of this machine; choose another --host",
            }
            raise UserError(f"{where} {reason.get(error.errno or 0, f'cannot be used: {error.strerror}')}") from error
        yield listener
