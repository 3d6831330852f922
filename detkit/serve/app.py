"""The addresses: the page, `/predict`, `/health`, `/metrics` and `/openapi.json`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detkit.serve.metrics import GONE, Metrics
from detkit.serve.receiving import ProblemResponse
from detkit.serve.refusal import Refusal
from detkit.serve.schema import openapi
from detkit.serve.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# The page loads nothing from elsewhere and can be put into no other page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def build_app(service: Service) -> Starlette:
    document = openapi(service.config)

    async def predict(request: Request) -> Response:
        return JSONResponse(await service.answer(request))

    async def health(_: Request) -> Response:
        answer = service.health()
        return JSONResponse(answer.model_dump(), 200 if answer.state == "ready" else 503)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics_text(), media_type=CONTENT_TYPE_LATEST)

    async def description(_: Request) -> Response:
        return JSONResponse(document)

    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/openapi.json", description),
        *(Route(path, _file(name, kind)) for path, (name, kind) in PAGE.items()),
    ]
    known = {route.path for route in routes}
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Counting, metrics=service.metrics, known=known)],
        exception_handlers={
            Refusal: _refused,
            HTTPException: _unknown,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )


def _file(name: str, kind: str) -> Endpoint:
    content = files("detkit.serve").joinpath(name).read_bytes()

    async def send(_: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return send


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return ProblemResponse(error)


async def _unknown(request: Request, error: Exception) -> Response:
    """A path that there is not, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    path, message = request.url.path, error.detail
    if error.status_code == 404:
        message = f"no such address: {path}; there are /predict, /health, /metrics, /openapi.json and the page at /"
    elif error.status_code == 405:
        methods = sorted((error.headers or {}).get("Allow", "").split(", "))
        message = f"{path} does not take {request.method}; it takes {' and '.join(methods)}"
    return ProblemResponse(Refusal(error.status_code, message, error.headers))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)


async def _failed(_: Request, __: Exception) -> Response:
    """The error itself goes to the log."""
    return ProblemResponse(Refusal(500, "the server failed on this request; its log says why"))


class _Counting:
    """Counts the answers by address and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, known: set[str]) -> None:
        self.app, self.metrics, self.known = app, metrics, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.known else "other"
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "http" else send)
