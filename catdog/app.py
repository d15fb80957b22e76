"""Serve a model as a web page and an API: python -m catdog.app serves best_model/."""

import logging
import os
import re
import socket
import sys
from ipaddress import ip_address
from pathlib import Path

from catdog.checkpoint import CHAMPION
from catdog.device import find_devices
from catdog.predict import Classifier
from catdog.serving.server import listen, serve
from shell.command_line import CommandLine, file_path

AUTH = "CATDOG_AUTH"  # environment variable: user:password
BLANKS = " \t\u00a0\u200b\u200e\u200f\u2060\u3000\ufeff"  # what editors and web pages leave around a text
QUOTE = r"[\"'`\u00ab\u00bb\u2018-\u201f]"
HASH = r"\$(apr1|2[abxy]?|[1567y]|argon2\w*|scrypt|pbkdf2[\w-]*)\$|\{(S?SHA\d*|S?MD5|CRYPT)\}|(pbkdf2|scrypt):"
NOT_PLAIN = {  # beginnings of a line with which nobody could log in as meant
    rf"{QUOTE}|[^:]*:\s*{QUOTE}.*{QUOTE}$": "quotes; write user:password without them",
    r"[{\[(<]": "brackets; write user:password alone, without them",
    r"[^:]*=|\$env:": "an assignment; write user:password alone",
    r"\w+://": "an address; write user:password alone",
    rf"[^:]*:\s*({HASH})": "a hash; write the password itself",
}


def make_parser() -> CommandLine:
    parser = CommandLine("python -m catdog.app", "Serve a model as a web page and an API.")
    add = parser.add_argument
    text = f"model file to serve; a new file at this path replaces it. Default {CHAMPION}"
    add("--model", type=file_path, default=CHAMPION, help=text)
    add("--host", default="127.0.0.1", help="address to listen on; the default 127.0.0.1 admits this machine only")
    add("--port", type=int, default=7860, help="default 7860; 0 chooses a free port")
    text = f"file with user:password, which visitors must enter; alternatively the environment variable {AUTH}"
    add("--auth", type=file_path, metavar="FILE", help=text)
    add("--root-path", default="", help="URL path of the page behind a reverse proxy")
    add("--device", default="auto", help="cpu, cuda:0, ...; auto is the first GPU, else the CPU")
    text = "auto: also log the Monitor's figures to Comet if an API key is configured"
    add("--tracking", choices=("auto", "off"), default="auto", help=text)
    return parser


def read_auth(option: Path | None) -> tuple[str, str] | None:
    """Read user:password from the file `option` or the environment. Raises ValueError for other text."""
    where, text = f"--auth {option}" if option else AUTH, _text_of(option) if option else os.environ.get(AUTH, "")
    if not text and not option:
        return None
    lines = [line.strip(BLANKS) for line in re.split(r"\r\n?|\n", text)]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) > 1:
        raise ValueError(f"{where} holds {len(lines)} lines; write one user:password, for all visitors")
    line = "".join(lines)
    if problem := next((problem for start, problem in NOT_PLAIN.items() if re.match(start, line, re.IGNORECASE)), ""):
        raise ValueError(f"{where} holds {problem}")
    user, _, password = (part.strip(BLANKS) for part in line.partition(":"))
    if not (user and password):
        raise ValueError(
            f"{where} holds no user:password; {'write one such line' if option else 'set it to user:password'}"
        )
    if not (user + password).isprintable():
        raise ValueError(f"{where} holds an invisible or control character in user:password; type it anew")
    return user, password


def _text_of(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        if ":" in str(path) and not path.exists():
            raise ValueError("--auth takes the name of a file; write user:password into that file") from error
        remedy = "" if path.exists() else "; make it, with one line user:password"
        raise ValueError(f"--auth {path} cannot be read ({error.strerror}){remedy}") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16
        raise ValueError(f"--auth {path} is not in UTF-8; save it as UTF-8")
    return text


def _is_open(listener: socket.socket) -> bool:
    """Say whether other machines reach a listening socket."""
    address = ip_address(listener.getsockname()[0].partition("%")[0])
    return not (getattr(address, "ipv4_mapped", None) or address).is_loopback


def main() -> None:
    parser = make_parser()
    options = parser.parse()
    if options.root_path and not options.root_path.startswith(("/", "http://", "https://")):
        parser.exit(2, f"--root-path is {options.root_path}; it begins with '/'")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    try:
        if options.model.absolute().parts[-2:] != CHAMPION.parts:  # there, the first may be yet to come
            Classifier(options.model)
        auth, (device, *_) = read_auth(options.auth), find_devices(options.device)
        listener = listen(options.host, options.port)
    except ValueError as error:
        parser.exit(2, str(error))
    if not auth and _is_open(listener):
        reached = f"every machine that reaches {options.host} can use the page"
        print(f"note: without a password, {reached}; set one with --auth FILE", file=sys.stderr)
    serve(options.model, listener, device, auth=auth, root_path=options.root_path, track=options.tracking == "auto")


if __name__ == "__main__":
    main()
