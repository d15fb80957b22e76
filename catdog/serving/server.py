"""Web server: routes, limits on requests, listening socket, upload folder."""

import logging
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from filelock import FileLock, Timeout

from catdog.data.cache import cache_folder
from catdog.data.decode import MAX_BYTES
from catdog.device import keep_freed_memory
from catdog.serving.comet import CometReporter, has_api_key
from catdog.serving.monitor import Monitor
from catdog.serving.service import Service
from catdog.serving.uploads import MAX_TOTAL

MAX_UPLOAD = 2 * MAX_BYTES  # bytes of one uploaded file: an archive may be larger than an image
MAX_UPLOAD_BODY = MAX_TOTAL + MAX_UPLOAD
MAX_CALL_BODY = 3 * MAX_BYTES // 2  # of an API call, which may hold an image in base64
FETCHING = ("file=http", "file=ftp", "proxy=")  # parts of Gradio's paths that make it fetch a URL
LOCK = ".lock"  # in a server's upload folder, held while the server runs
DELETE_SECONDS = 5.0  # between two deletions of old uploads
MAX_REQUESTS = 400  # at a time, open pages included; the next one returns 503
Auth = tuple[str, str] | None  # user and password
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

log = logging.getLogger("catdog")


def serve(model: Path, listener: socket.socket, device: str, *, auth: Auth, root_path: str, track: bool) -> None:
    """Serve a model file on a listening socket until a signal ends it; `track` logs to Comet if there is an API key."""
    keep_freed_memory()
    with ExitStack() as resources:
        reporter = resources.enter_context(closing(CometReporter())) if track and has_api_key() else None
        folder = resources.enter_context(_upload_folder(cache_folder() / "uploads"))
        service = Service(model, device, Monitor(), reporter)
        app = make_app(service, folder, resources, auth, root_path)
        config = uvicorn.Config(app, log_level="warning", limit_concurrency=MAX_REQUESTS, timeout_graceful_shutdown=2)
        logging.getLogger("uvicorn.error").addFilter(_is_relevant)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {model} at http://{shown}:{port} (stop with Ctrl-C)", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after its shutdown
            uvicorn.Server(config).run(sockets=[listener])


def make_app(service: Service, folder: Path, resources: ExitStack, auth: Auth, root_path: str) -> FastAPI:
    """Return the application: the page, its API, /health and /metrics. Its shutdown closes `resources`."""
    os.environ.update(SETTINGS, GRADIO_TEMP_DIR=str(folder))
    from catdog.serving.ui import Page  # noqa: PLC0415 - imports Gradio, which reads its settings then

    page = Page(service, folder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        service.repeat("deleting old uploads", page.delete_uploads, DELETE_SECONDS)
        yield
        service.stopped.set()
        resources.close()  # here, because uvicorn raises SIGTERM again, which ends the process

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestGuard)

    @app.get("/health")
    def health() -> JSONResponse:
        if service.classifier is None:
            return JSONResponse({"problem": service.problem}, 503)
        return JSONResponse({"version": service.classifier.version, "problem": service.problem})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.monitor.prometheus_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return page.mount(app, auth=auth, root_path=root_path, max_upload=MAX_UPLOAD)


class RequestGuard:
    """ASGI middleware: refuses bodies above a limit, and paths that make Gradio fetch a URL."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = MAX_UPLOAD_BODY if scope["path"].rstrip("/").endswith("/upload") else MAX_CALL_BODY
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if any(part in scope["path"].lower() for part in FETCHING):
            await Response("this server fetches nothing from other servers", 404)(scope, receive, send)
        elif not length.isdigit() or int(length) > limit:
            await Response(f"a request may have at most {limit / 2**20:.0f} MB", 413)(scope, receive, send)
        else:
            await self.app(scope, _limit_body(receive, limit), send)


def _limit_body(receive: Any, limit: int) -> Any:
    """Return a `receive` that disconnects a client whose body exceeds `limit` bytes, despite its announced length."""
    num_bytes = 0

    async def receive_within_limit() -> Any:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        return message if num_bytes <= limit else {"type": "http.disconnect"}

    return receive_within_limit


def _is_relevant(record: logging.LogRecord) -> bool:
    """Return False for uvicorn's message that its shutdown disconnected an open page."""
    return "timeout graceful shutdown" not in f"{record.getMessage()} {record.exc_info}"


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises ValueError, one sentence, if the address is not available."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; it must be 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as on_error:
            # With the protocol given, asyncio sets TCP_NODELAY: answers are sent at once, not after 40 ms.
            listener = on_error.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
            on_error.pop_all()
    except (OSError, UnicodeError) as error:
        fault = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise ValueError(f"cannot listen on {host}:{port} ({fault}); give another --host or --port") from error
    return listener


@contextmanager
def _upload_folder(parent: Path) -> Iterator[Path]:
    """Make this server's upload folder; remove those of killed servers, whose locks are free."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(dir=parent)).resolve()
    with FileLock(folder / LOCK):
        for other in parent.iterdir():
            with suppress(OSError, Timeout), FileLock(other / LOCK, timeout=0):
                shutil.rmtree(other, ignore_errors=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
