"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

GONE = 499  # the status that is counted for a client that went away, as nginx does
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        ProcessCollector(registry=self.collectors)
        self.requests = Counter(
            "detkit_requests", "Answers by address and status", ["path", "status"], registry=self.collectors
        )
        self.seconds = Histogram(
            "detkit_seconds", "Time of a picture in each stage", ["stage"], buckets=SECONDS, registry=self.collectors
        )
        self.sizes = Histogram(
            "detkit_batch_size", "Pictures detected at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.collectors
        )
        self.waiting = Gauge(
            "detkit_queue_length", "Decoded pictures that wait for the detector", registry=self.collectors
        )
        self.in_flight = Gauge("detkit_in_flight", "Predictions that are not answered yet", registry=self.collectors)

    def batch(self, size: int, waited: Sequence[float], detecting: float) -> None:
        """One batch; `waited` s of each picture, and the s that all of them took."""
        self.sizes.observe(size)
        for seconds in waited:
            self.seconds.labels("queue").observe(seconds)
            self.seconds.labels("detect").observe(detecting)

    def text(self) -> bytes:
        return generate_latest(self.collectors)
