"""The champion as a web page and an API: python -m catdog.app serves best_model/."""

import argparse
import logging
import os
import secrets
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from filelock import FileLock, Timeout

from catdog.data.dataset import cache_folder
from catdog.device import find_devices, keep_freed_memory
from catdog.predict import CHAMPION
from catdog.serving.comet import CometReporter, has_api_key
from catdog.serving.monitor import Monitor
from catdog.serving.service import Service
from catdog.serving.uploads import MAX_BYTES, MAX_TOTAL

__all__ = ["make_app"]

AUTH = "CATDOG_AUTH"  # environment variable: user:password
MAX_UPLOAD = 2 * MAX_BYTES  # of one file: an archive may be larger than a picture
MAX_BODY = MAX_TOTAL + MAX_UPLOAD  # of an upload
MAX_CALL = 3 * MAX_BYTES // 2  # of a call, perhaps with a picture in base64
FETCHING = ("file=http", "file=ftp", "proxy=")  # parts of Gradio's paths that have it ask another server
LAST_PORT = 65535
LOCK = ".lock"  # in a server's folder, held as long as it runs
TIDY_SECONDS = 5.0  # between two looks through the uploads
MAX_REQUESTS = 400  # at a time, open pages among them; the next one is answered 503

log = logging.getLogger("catdog")


def make_app(
    service: Service,
    folder: Path,
    *,
    auth: tuple[str, str] | None = None,
    root_path: str = "",
    at_end: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the whole application: the page, its API, /health and /metrics. Uploads go to `folder`."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when components are made
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr  # noqa: PLC0415 - reads its settings when it is imported

    from catdog.serving.ui import CSS, Page  # noqa: PLC0415 - see above

    page = Page(service, folder)
    app = FastAPI(
        lifespan=_alive(service, page.delete_uploads, at_end), docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_middleware(Guard)

    @app.get("/health")
    def health() -> JSONResponse:
        if service.classifier is None:
            return JSONResponse({"problem": service.problem}, 503)
        return JSONResponse({"version": service.classifier.version, "problem": service.problem})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(service.monitor.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # none is fetched from elsewhere
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page.build(),
        path="/",
        auth=_checker(auth) if auth else None,
        root_path=root_path or None,
        max_file_size=MAX_UPLOAD,
        show_error=True,
        ssr_mode=False,
        run_history=False,
        footer_links=["api", "settings"],
        theme=gr.themes.Soft(font=fonts[0], font_mono=fonts[1]),
        css_paths=[CSS],
    )
    return mounted


class Guard:
    """Refuses requests with too large a body, as soon as that is known, and those that would fetch from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if any(part in scope["path"].lower() for part in FETCHING):
            await Response("nothing is fetched from elsewhere", 404)(scope, receive, send)
            return
        num_bytes, limit = 0, MAX_BODY if scope["path"].rstrip("/").endswith("/upload") else MAX_CALL

        async def counting() -> Any:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return message if num_bytes <= limit else {"type": "http.disconnect"}

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            await Response(f"at most {limit / 2**20:.0f} MB are taken at once", 413)(scope, receive, send)
            return
        await self.app(scope, counting, send)


def _checker(auth: tuple[str, str]) -> Callable[[str, str], bool]:
    def check(user: str, password: str) -> bool:
        user_fits = secrets.compare_digest(user.encode(), auth[0].encode())
        return secrets.compare_digest(password.encode(), auth[1].encode()) and user_fits

    return check


def _alive(service: Service, tidy: Callable[[], None], at_end: Callable[[], None]) -> Callable[[FastAPI], Any]:
    """Have the service run, and `tidy` every few seconds, as long as the server does; then call `at_end`."""
    over = threading.Event()

    def tidy_again_and_again() -> None:
        while not over.wait(TIDY_SECONDS):
            try:
                tidy()
            except Exception:
                log.exception("uploads are looked through again later")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        threading.Thread(target=tidy_again_and_again, daemon=True).start()
        yield
        over.set()
        service.stop()
        at_end()

    return lifespan


def read_auth(option: Path | None) -> tuple[str, str] | None:
    """Read user:password from the file `option` or the environment. Raises ValueError, one sentence."""
    try:
        text = option.read_text() if option else os.environ.get(AUTH, "")
    except OSError as error:
        raise ValueError(f"--auth {option} cannot be read ({error.strerror})") from error
    if not text and not option:
        return None
    user, colon, password = text.strip().partition(":")
    if not (user and colon and password):
        raise ValueError(f"{f'--auth {option}' if option else AUTH} holds no user:password")
    return user, password


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m catdog.app", description="Serve a model as a web page.")
    parser.add_argument("--model", type=Path, default=CHAMPION, help=f"file to serve and to watch, default {CHAMPION}")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on, default 127.0.0.1: this machine alone"
    )
    parser.add_argument("--port", type=int, default=7860, help="default 7860; 0 takes a free one")
    text = f"a file that holds user:password, which visitors then need; or the environment variable {AUTH}"
    parser.add_argument("--auth", type=Path, metavar="FILE", help=text)
    parser.add_argument("--root-path", default="", help="path under which a proxy shows the page")
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ...; auto is the first GPU, else the CPU")
    text = "auto: the Monitor's figures also go to Comet, where there is an API key"
    parser.add_argument("--tracking", choices=("auto", "off"), default="auto", help=text)
    options = parser.parse_args()
    if options.model.is_dir():
        parser.exit(2, f"--model {options.model} is a folder; give the file in it\n")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    try:
        auth, (device, *_) = read_auth(options.auth), find_devices(options.device)
        listener = _bind(options.host, options.port)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    host, port = listener.getsockname()[:2]
    monitor = Monitor()
    keep_freed_memory()
    with ExitStack() as held:
        if options.tracking == "auto" and has_api_key():
            monitor.listeners.append(teller := CometReporter())
            held.callback(teller.close)
        folder = held.enter_context(_own_folder(cache_folder() / "uploads"))
        service = Service(options.model, device, monitor)
        app = make_app(service, folder, auth=auth, root_path=options.root_path, at_end=held.close)
        config = uvicorn.Config(app, log_level="warning", limit_concurrency=MAX_REQUESTS, timeout_graceful_shutdown=2)
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {options.model} at http://{shown}:{port} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn raises it again when everything is closed
            uvicorn.Server(config).run(sockets=[listener])


def _is_news(record: logging.LogRecord) -> bool:
    """Say whether a record is more than that an open page was cut off at the end."""
    return "timeout graceful shutdown" not in f"{record.getMessage()} {record.exc_info}"


def _bind(host: str, port: int) -> socket.socket:
    """Take the address. Raises ValueError, one sentence, where that cannot be."""
    if not 0 <= port <= LAST_PORT:
        raise ValueError(f"--port is {port}; it must be 0 to {LAST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as closing:
            # asyncio sends at once where the protocol is told, not after 40 ms.
            listener = closing.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
            closing.pop_all()
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}); give another --host or --port") from error
    return listener


@contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for as long as this server runs; remove those that killed servers left, whose locks are free."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(dir=parent)).resolve()
    with FileLock(folder / LOCK):
        for other in parent.iterdir():
            with suppress(OSError, Timeout), FileLock(other / LOCK, timeout=0):
                shutil.rmtree(other, ignore_errors=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
