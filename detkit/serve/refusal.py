"""What a client is told when there is no answer."""

from __future__ import annotations

from collections.abc import Mapping

from detkit.config import printable


class Refusal(Exception):
    """An answer of one line that is not the detections; `status` is that of HTTP."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(printable(message))
        self.status = status
        self.headers = dict(headers or {})


def stopping() -> Refusal:
    return Refusal(503, "the server is stopping")


def ended() -> Refusal:
    return Refusal(503, "the detector has ended; start the server again, and see its log")


def busy(what: str) -> Refusal:
    return Refusal(503, f"{what}; try again in a second", {"Retry-After": "1"})
