"""What Prometheus reads, in a registry of its own."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

GONE = 499  # the status that is counted for a client that went away, as nginx does
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "detkit_requests", "Answers by address and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "detkit_seconds", "Time of a picture in each stage", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self.sizes = Histogram(
            "detkit_batch_size", "Pictures detected at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.waiting = Gauge(
            "detkit_queue_length", "Decoded pictures that wait for the detector", registry=self.registry
        )
        self.in_flight = Gauge("detkit_in_flight", "Predictions that are not answered yet", registry=self.registry)

    def batch(self, size: int, waited: Sequence[float], detecting: float) -> None:
        """One batch; `waited` s of each picture, and the s that all of them took."""
        self.sizes.observe(size)
        for seconds in waited:
            self.seconds.labels("queue").observe(seconds)
            self.seconds.labels("detect").observe(detecting)

    def text(self) -> bytes:
        return generate_latest(self.registry)
