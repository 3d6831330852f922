"""The bytes of a request, as far as the limits allow, and answers to those that are beyond them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from detkit.config import UserError
from detkit.data.pictures import decode_picture, size_in_header
from detkit.serve.refusal import Refusal
from detkit.serve.settings import ServeConfig

LINGER, LINGER_BYTES = 2.0, 2**27  # s, and how much in that time


def refuse_form(request: Request, config: ServeConfig) -> None:
    """Raises Refusal for what browsers and `curl -F` send, in which the picture is one of several parts."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise Refusal(
            415,
            "expected the bytes of one picture as the body, found a form; "
            f"send it so: curl --data-binary @photo.jpg http://{request.headers.get('host', config.host)}/predict",
        )


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """Raises Refusal for an empty body and as soon as there are too many bytes, ClientDisconnect if it ends early."""
    too_large = Refusal(413, f"expected at most {config.max_body_mb:g} MB, found more; send a smaller picture")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > config.max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > config.max_bytes:
            raise too_large
    request.state.complete = True
    if not body:
        raise Refusal(422, "expected the bytes of one picture as the body, found none")
    return bytes(body)


def decode(data: bytes, config: ServeConfig) -> np.ndarray:
    """uint8 `[H, W, 3]` RGB, upright. Raises Refusal if it is too large by its header, or no whole picture."""
    try:
        height, width = size_in_header(data)
        if height * width > config.max_pixels:
            raise Refusal(
                413,
                f"expected at most {config.max_megapixels:g} megapixels, found {width} x {height} (w x h) in the "
                "header; send a smaller picture",
            )
        return decode_picture(data)
    except UserError as error:
        raise Refusal(422, str(error)) from error


async def until_gone(request: Request) -> None:
    """Raises ClientDisconnect when the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


class ProblemResponse(JSONResponse):
    """One line of JSON.

    If the client is still sending, what comes within `LINGER` is read and dropped before the connection is closed.
    Otherwise a client that reads only when it has sent all would find the connection broken, and not the answer.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__({"error": str(refusal)}, refusal.status, refusal.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("state", {}).get("complete"):
            await super().__call__(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drop_rest(receive), LINGER)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop_rest(receive: Receive) -> None:
    num_bytes = 0
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        num_bytes += len(message["body"])
        if num_bytes > LINGER_BYTES:
            return
