"""What a server can be told. The command line makes an option of every field."""

from __future__ import annotations

from pydantic import Field

from detkit.config import Config


class ServeConfig(Config):
    host: str = Field("127.0.0.1", min_length=1, description="address to listen at; 0.0.0.0: of every network")
    port: int = Field(8000, ge=0, le=65535, description="to listen at; 0: a free one")
    score_threshold: float = Field(0.05, ge=0, le=1, description="detections that score less are never sent")
    max_batch: int = Field(8, ge=1, description="pictures that are detected at once")
    max_wait_ms: float = Field(
        5, ge=0, description="milliseconds that a picture waits for another that is being decoded"
    )
    max_queue: int = Field(128, ge=1, description="pictures that may wait; one more is answered with 503")
    max_requests: int = Field(
        512, ge=1, description="predictions at once, pictures that are still being sent among them"
    )
    max_body_mb: float = Field(20, gt=0, description="megabytes that the file of a picture may have")
    max_megapixels: float = Field(50, gt=0, description="millions of pixels that a picture may have")
    read_timeout_s: float = Field(20, gt=0, description="seconds in which a picture must have arrived")
    timeout_s: float = Field(30, gt=0, description="seconds in which it must be answered")
    stop_s: float = Field(5, ge=0, description="seconds that what is in flight has to finish when the server stops")
    decode_threads: int = Field(2, ge=1, description="threads that decode pictures")

    @property
    def max_bytes(self) -> int:
        return int(self.max_body_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)
