"""Parse the options of a command. A mistake in them is one sentence, with the closest word that is known."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from shell.redact import without_password

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"  # what editors and chats make of "--"


class CommandLine(argparse.ArgumentParser):
    """A parser that prints no usage with an error, and proposes options and values.

    Options may be abbreviated, as argparse allows by default: scripts rely on it, and an ambiguous one is refused.
    """

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(prog=prog, description=description)
        self.register("type", int, _whole_number)
        self.register("type", float, _number)
        self.register("type", bool, _truth)

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line. A mistake ends the process with status 2."""
        arguments = sys.argv[1:] if arguments is None else arguments
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in arguments:
            if word[:1] in DASHES and (hint := did_you_mean(word, known)):
                self.error(f"{word} begins with another dash than '-'{hint}")
        options, unknown = self.parse_known_args(arguments)
        if unknown and all(map(os.path.lexists, unknown)):
            self.error(f"too many files or names: leave out {' '.join(unknown)}")
        if unknown:
            hints = filter(None, (did_you_mean(word.partition("=")[0], known) for word in unknown))
            self.error(f"unrecognized arguments: {' '.join(unknown)}{next(hints, '')}")
        return options

    def error(self, message: str) -> NoReturn:
        message = message.replace("expected one argument", "its value is missing")
        if "arguments are required" in message:
            missing = [action for action in self._actions if action.required]
            words = [str(next(iter(action.choices or [action.metavar or action.dest]))) for action in missing]
            message = f"an argument is missing; write {self.prog} {' '.join(words)}"
        has_remedy = any(mark in message for mark in ("?", ";", "leave out"))
        self.exit(2, f"{self.prog}: {message}{'' if has_remedy else '; --help lists the options'}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process; print the message, if any, as one line to standard error."""
        super().exit(status, f"{one_line(without_password(message))}\n" if message else None)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse an empty text, which a variable of the shell that is not set leaves behind."""
        if "" in arg_strings:
            name, rest = next(iter(action.option_strings), ""), ", or leave it out"
            self.error(f"{name or action.metavar or action.dest} is empty; give a value{rest if name else ''}")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is none of the choices, in the same words with every version of Python."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            if len(choices) == 1:
                raise argparse.ArgumentError(action, f"{value!r} is unknown; write {choices[0]}")
            wanted = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
            raise argparse.ArgumentError(action, f"{value!r} is not {wanted}{did_you_mean(value, choices)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Propose the known word that is most like `word`, as the end of a sentence; nothing if none is like it."""
    by_key = {_key(name): name for name in known}
    closest = get_close_matches(_key(word), by_key, n=1)
    return f"; did you mean {by_key[closest[0]]}?" if closest else ""


def file_path(text: str) -> Path:
    """Return the path of a file, as the type of an option. A folder is refused."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give the file in it")
    return path


def printable(text: str) -> str:
    """Escape what a terminal would obey or could not show, such as ESC in the name of a file."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _key(word: str) -> str:
    return word.lower().replace("_", "-").lstrip(f"-{DASHES}")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() == "true"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
