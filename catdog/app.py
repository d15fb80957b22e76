"""Serve a model as a web page and an API: python -m catdog.app serves best_model/."""

import logging
import os
from pathlib import Path

from catdog.device import find_devices
from catdog.predict import CHAMPION
from catdog.serving.server import listen, serve
from command_line import CommandLine

AUTH = "CATDOG_AUTH"  # environment variable: user:password


def make_parser() -> CommandLine:
    parser = CommandLine("python -m catdog.app", "Serve a model as a web page and an API.")
    add = parser.add_argument
    text = f"model file to serve; a new file at this path replaces it. Default {CHAMPION}"
    add("--model", type=Path, default=CHAMPION, help=text)
    add("--host", default="127.0.0.1", help="address to listen on; the default 127.0.0.1 admits this machine only")
    add("--port", type=int, default=7860, help="default 7860; 0 chooses a free port")
    text = f"file with user:password, which visitors must enter; alternatively the environment variable {AUTH}"
    add("--auth", type=Path, metavar="FILE", help=text)
    add("--root-path", default="", help="URL path of the page behind a reverse proxy")
    add("--device", default="auto", help="cpu, cuda:0, ...; auto is the first GPU, else the CPU")
    text = "auto: also log the Monitor's figures to Comet if an API key is configured"
    add("--tracking", choices=("auto", "off"), default="auto", help=text)
    return parser


def read_auth(option: Path | None) -> tuple[str, str] | None:
    """Read user:password from the file `option` or the environment. Raises ValueError for other text."""
    try:
        text = option.read_text(encoding="utf-8") if option else os.environ.get(AUTH, "")
    except OSError as error:
        raise ValueError(f"--auth {option} cannot be read ({error.strerror})") from error
    if not text and not option:
        return None
    user, colon, password = text.strip().partition(":")
    if not (user and colon and password):
        raise ValueError(f"{f'--auth {option}' if option else AUTH} holds no user:password")
    return user, password


def main() -> None:
    parser = make_parser()
    options = parser.parse()
    if options.model.is_dir():
        parser.exit(2, f"--model {options.model} is a folder; give the file in it\n")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    try:
        auth, (device, *_) = read_auth(options.auth), find_devices(options.device)
        listener = listen(options.host, options.port)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    serve(options.model, listener, device, auth=auth, root_path=options.root_path, track=options.tracking == "auto")


if __name__ == "__main__":
    main()
