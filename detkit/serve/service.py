"""From the bytes of a picture to its detections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request

from detkit.engine.prediction.inference import Predict
from detkit.engine.prediction.records import picture_record
from detkit.serve.batching import Batcher
from detkit.serve.metrics import Metrics
from detkit.serve.receiving import decode, read_body, refuse_form, until_gone
from detkit.serve.refusal import Refusal, busy, ended, stopping
from detkit.serve.schema import Health, parse_query
from detkit.serve.settings import ServeConfig
from detkit.structures import Categories, Detections, Size

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Served:
    """A detector as the server needs it.

    source      what it was loaded from
    predict     the detections of each of several pictures
    input_size  of a picture of (h, w)
    """

    source: str
    categories: Categories
    device: str
    predict: Predict
    input_size: Callable[[Size], Size]


class Service:
    """Answers requests in the loop of asyncio, decodes in threads, and detects in one more."""

    def __init__(self, served: Served, config: ServeConfig) -> None:
        self.served, self.config = served, config
        self.metrics = Metrics()
        self.batcher = Batcher(
            served.predict,
            served.input_size,
            self.metrics,
            max_batch=config.max_batch,
            max_wait=config.max_wait_ms / 1000,
        )
        self.decoders = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decoder")
        # Pictures take far more memory than their files, so that few are decoded ahead of the detector.
        self.slots = asyncio.Semaphore(2 * config.max_batch + config.decode_threads)
        self.in_flight = 0
        self.queued = 0  # of those in flight, whose bytes have arrived
        self.stopping = False
        self.cut_off = asyncio.Event()  # what is in flight has had its time

    async def answer(self, request: Request) -> dict[str, Any]:
        """The record of the picture in the body. Raises Refusal, or ClientDisconnect when there is nobody to answer."""
        config = self.config
        with self._counted():
            choose = parse_query(request.query_params, self.served.categories, config)
            refuse_form(request, config)
            self._refuse_full()
            late = Refusal(408, f"the picture did not arrive within {config.read_timeout_s:g} s")
            with self._timed("read"):
                data = await self._limited(read_body(request, config), config.read_timeout_s, late)
            self._refuse_full()
            self.queued += 1
            try:
                late = Refusal(504, f"no answer within {config.timeout_s:g} s")
                size, detections = await self._limited(self._detect(data), config.timeout_s, late, until_gone(request))
            finally:
                self.queued -= 1
        return picture_record(size, choose(detections))

    async def _detect(self, data: bytes) -> tuple[Size, Detections]:
        async with self.slots:
            with self.batcher.coming():
                with self._timed("decode"):
                    loop = asyncio.get_running_loop()
                    image = await loop.run_in_executor(self.decoders, decode, data, self.config)
                height, width = image.shape[:2]
                detecting = self.batcher.submit(image)
                del image  # the batcher alone decides how long it is in memory
            return (height, width), await asyncio.wrap_future(detecting)

    async def _limited(
        self, work: Awaitable[Value], seconds: float, late: Refusal, watch: Awaitable[None] | None = None
    ) -> Value:
        """The result of `work`. Raises `late` after so many seconds, and what `watch` raises; `work` is cancelled."""
        task = asyncio.ensure_future(work)
        others = [asyncio.ensure_future(other) for other in (self.cut_off.wait(), *([watch] if watch else []))]
        try:
            done, _ = await asyncio.wait({task, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return await task
            if others[0] in done:
                raise stopping()
            for other in done:
                await other  # raises
            raise late
        finally:
            for pending in (task, *others):
                pending.cancel()
            await asyncio.gather(task, *others, return_exceptions=True)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Raises Refusal if the server is not to take one more request."""
        if self.stopping:
            raise stopping()
        if not self.batcher.alive:
            raise ended()
        if self.in_flight >= self.config.max_requests:
            raise busy(f"{self.config.max_requests} predictions are in flight, which is the limit")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _refuse_full(self) -> None:
        if self.queued >= self.config.max_queue:
            raise busy(f"{self.config.max_queue} pictures wait, which is the limit")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = monotonic()
        yield
        self.metrics.seconds.labels(stage).observe(monotonic() - start)

    def health(self) -> Health:
        ready = "ready" if self.batcher.alive else f"the detector has ended: {self.batcher.fault}"
        return Health(
            state="stopping" if self.stopping else ready,
            source=self.served.source,
            classes=list(self.served.categories.names),
            category_ids=list(self.served.categories.ids),
            device=self.served.device,
            score_threshold=self.config.score_threshold,
            max_batch=self.config.max_batch,
            in_flight=self.in_flight,
            waiting=len(self.batcher),
            batches=self.batcher.batches,
            pictures=self.batcher.pictures,
        )

    def metrics_text(self) -> bytes:
        self.metrics.in_flight.set(self.in_flight)
        self.metrics.waiting.set(len(self.batcher))
        return self.metrics.text()

    def warm_up(self) -> None:
        """Detects on an empty picture, so that the first client does not wait for what is built at the first call."""
        self.served.predict([np.zeros((480, 640, 3), np.uint8)])

    def close(self, patience: float = 0) -> bool:
        """Ends the threads; whether the detector's has ended after `patience` s."""
        self.decoders.shutdown(wait=False, cancel_futures=True)
        return self.batcher.close(patience)
