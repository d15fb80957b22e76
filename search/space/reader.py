"""Read optimizer.json as people write it: JSON, Python literals (which Comet's client reads), and mixtures of both.

Accepted are comments (#, //, /* */), single quotes, trailing commas, tuples, true and True, null and None, byte-order
marks, UTF-16 and UTF-32.
"""

import ast
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.space.expressions import PLAIN_VALUE, remedy
from search.space.text_file import read_text
from shell.command_line import printable

MAX_DEPTH = 20
MAX_DIGITS = 400  # of a number
CONSTANTS = {"true": True, "false": False, "null": None, "None": None}
QUOTES = "\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb`"  # of word processors
CLOSING = {"{": "}", "[": "]", "(": ")"}
SPACED = {"}": r"[1-9]\d{0,2}(?: \d{3})+\b"}  # a number, with spaces between its digits
SPACED["]"] = SPACED[")"] = r"[1-9]\d{0,2}(?: 0\d\d)+\b"  # other numbers of a list lack a comma
OPERATORS = set("*/%+-^|&@.<>?!$~")
KEYWORDS = {"for", "if", "or", "and", "in"}
TOKEN = re.compile(
    r"""(?P<space>(?:[\s\ufeff\u200b]|\#[^\n]*|//[^\n]*|/\*[\s\S]*?\*/)+)
    |(?P<text>[uUrR]?(?:'''[\s\S]*?'''|\"""[\s\S]*?\"""|"(?:[^"\\\n]|\\[\s\S])*"|'(?:[^'\\\n]|\\[\s\S])*'))
    |(?P<number>[+-]?\.?\d(?:[eE][+-]|[\w.])*)
    |(?P<word>[+-]?[^\W\d]\w*)
    |(?P<comment>/\*)
    |(?P<mark>[\s\S])
    |(?P<end>\Z)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Token:
    kind: str  # text, number, word, mark, end
    text: str
    start: int  # position of its first character
    end: int  # position behind its last

    @property
    def starts_a_value(self) -> bool:
        return self.kind in ("text", "number", "word") or self.text in CLOSING


def read_file(path: Path) -> dict[str, Any]:
    """Read optimizer.json. Raises ValueError, one sentence with the line, if it cannot be read."""
    try:
        return _Parser(read_text(path)).parse()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Parser:
    """Reads one text. Its errors are sentences without the name of the file."""

    def __init__(self, text: str) -> None:
        self.text, self.depth = text, 0
        self.before = self.token = _Token("end", "", 0, 0)
        self._advance()

    def parse(self) -> dict[str, Any]:
        if self.token.kind == "end":
            raise ValueError("is empty; write a search space, like that of configs/optimizer.json")
        if self.token.text != "{":
            raise ValueError(f"begins with {_shown(self.token)}, not with {{; write it like configs/optimizer.json")
        content: dict[str, Any] = self._value()
        if self.token.kind != "end":
            closed = f"line {self._line(self.before)} closes the first {{"
            raise ValueError(f"{closed}, but {self._here()} follows; remove what is too much, perhaps a bracket")
        return content

    def _advance(self) -> _Token:
        """Go to the next token; return the one before it."""
        self.before, position = self.token, self.token.end
        while (match := TOKEN.match(self.text, position)) and match.lastgroup == "space":
            position = match.end()
        assert match, "the pattern matches anything"
        self.token = _Token(str(match.lastgroup), match[0], *match.span())
        if self.token.kind == "comment":
            raise ValueError(f"the comment of line {self._line(self.token)} is not closed; add */")
        return self.before

    def _value(self) -> Any:
        if self.token.text in CLOSING:
            return self._bracket(self._object if self.token.text == "{" else self._list)
        if self.token.text in OPERATORS:
            raise ValueError(self._no_plain_value(self.token.start))
        if not self.token.starts_a_value:
            raise ValueError(self._unexpected("a value"))
        token = self._advance()
        if self._continues(token):
            raise ValueError(self._no_plain_value(token.start))
        return {"text": self._text, "number": self._number, "word": self._word}[token.kind](token)

    def _continues(self, token: _Token) -> bool:
        """Say whether a value goes on as a calculation or a call."""
        follows, is_adjacent = self.token, self.token.start == token.end
        if follows.text in OPERATORS or follows.text in KEYWORDS:
            return True
        if token.kind == "word":
            return is_adjacent and (follows.text in CLOSING or follows.kind == "text")
        return is_adjacent and token.kind == follows.kind == "number"

    def _no_plain_value(self, start: int) -> str:
        """Describe the calculation or the call that begins at `start` and ends in its line."""
        depth, end = 0, start
        for match in TOKEN.finditer(self.text, start):
            depth += (match[0] in CLOSING) - (match[0] in CLOSING.values())
            if depth < 0 or not match[0] or "\n" in match[0] or (match[0] in (",", ":") and not depth):
                break
            end = match.end()
        text = self.text[start:end].strip()
        line = self.text.count("\n", 0, start) + 1
        return f"line {line} has {printable(text[:60])}, which is no plain value; {remedy(text) or PLAIN_VALUE}"

    def _bracket(self, read: Callable[[_Token], Any]) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"line {self._line(self.token)} nests more than {MAX_DEPTH} brackets; close some")
        content = read(self._advance())
        self._advance()
        self.depth -= 1
        return content

    def _object(self, opening: _Token) -> dict[str, Any]:
        content: dict[str, Any] = {}
        tokens: dict[str, _Token] = {}
        while self.token.text != "}":
            if self.token.kind == "end":
                raise ValueError(self._unclosed(opening))
            key, token = self._key()
            if key in content:
                again, before = self._line(token), self._line(tokens[key])
                raise ValueError(f"line {again} repeats the key {_shown(token)} of line {before}; keep one of them")
            content[key], tokens[key] = self._value(), token
            self._require_comma(opening)
        return content

    def _key(self) -> tuple[str, _Token]:
        if self.token.kind == "mark":
            raise ValueError(self._unexpected("a key in quotes"))
        token = self._advance()
        if token.kind != "text" and self.token.text == ":":
            raise ValueError(f"line {self._line(token)} has the key {_shown(token)}; write {_quoted(token.text)}")
        if number := re.search(r"[+-]?\d+,[\d,]+\Z", self.text[max(0, token.start - 40) : token.end]):
            numbers = number[0] + re.sub(r"[^\d,][\s\S]*", "", self.text[token.end : token.end + 40]).rstrip(",")
            raise ValueError(f"line {self._line(token)} has {numbers}; {remedy(numbers) or PLAIN_VALUE}")
        if self.token.text in (",", "}"):
            line = f"line {self._line(token)} has {_shown(token)} in braces without a value"
            raise ValueError(f"{line}; write a list in [ ], or a key with its value")
        if token.kind == "word" and self.token.kind == "text" and self._continues(token):
            raise ValueError(self._no_plain_value(token.start))
        if token.kind != "text":
            raise ValueError(f"line {self._line(token)} has {_shown(token)} where a key in quotes is expected")
        if self.token.kind == "word":
            raise ValueError(f"{self._here()} stands where a colon is expected; check the quotes before it")
        if self.token.starts_a_value:
            raise ValueError(self._lacks("colon", ": "))
        if self.token.text != ":":
            raise ValueError(self._unexpected(f"a colon after {_quoted(token.text)}"))
        self._advance()
        return self._text(token), token

    def _list(self, opening: _Token) -> list[Any]:
        content: list[Any] = []
        while self.token.text != CLOSING[opening.text]:
            if self.token.kind == "end":
                raise ValueError(self._unclosed(opening))
            content.append(self._value())
            self._require_comma(opening)
        return content

    def _require_comma(self, opening: _Token) -> None:
        closing = CLOSING[opening.text]
        if self.token.text == ",":
            self._advance()
        elif spaced := re.compile(SPACED[closing]).match(self.text, self.before.start):
            raise ValueError(f"line {self._line(self.before)} has {spaced[0]}; {remedy(spaced[0])}")
        elif self.token.starts_a_value:
            raise ValueError(self._lacks("comma", ", "))
        elif self.token.kind != "end" and self.token.text != closing:
            of = f"for the {opening.text} of line {self._line(opening)}"
            raise ValueError(self._unexpected(f"a comma (or {closing} {of})"))

    def _text(self, token: _Token) -> str:
        try:
            text = _literal(token.text)
        except (ValueError, SyntaxError) as error:
            where = f"line {self._line(token)} has a wrong backslash in {_shown(token)}"
            raise ValueError(f"{where}; write two for one, or / in a path") from error
        if re.search(r"[\ud800-\udfff]", text):
            where = f"line {self._line(token)} has half of a pair of \\u codes in {_shown(token)}"
            raise ValueError(f"{where}; write the character itself")
        return text

    def _number(self, token: _Token) -> float:
        where = f"line {self._line(token)} has {_shown(token)}"
        if len(token.text) > MAX_DIGITS:
            raise ValueError(f"{where}; write a shorter number")
        if re.match(r"[+-]?0\d", token.text):
            digits = token.text.lstrip("+-")
            raise ValueError(f"{where}; write 0.{digits} with a point if 0,{digits} is meant, or no zero before")
        try:
            number = as_number(token.text)
        except ValueError as error:
            raise ValueError(f"{where}; write a number such as 8 or 0.001, or a text in quotes") from error
        if not math.isfinite(number):
            raise ValueError(f"{where}; write a smaller number")
        return number

    def _word(self, token: _Token) -> Any:
        where = f"line {self._line(token)} has {_shown(token)}"
        if token.text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise ValueError(f"{where}; write a finite number")
        for text in (token.text, token.text.lower()):
            if text in CONSTANTS:
                return CONSTANTS[text]
        raise ValueError(f"{where}; write a text in quotes: {_quoted(token.text)}")

    def _lacks(self, name: str, mark: str) -> str:
        """Say which mark is missing behind the token before this one, and show its line with the mark."""
        end = self.before.end
        begin = max(self.text.rfind("\n", 0, end) + 1, end - 60)
        rest = self.text[end:].partition("\n")[0].strip()[:60]
        line = f"{self.text[begin:end]}{mark}{rest}".strip()
        return f"line {self._line(self.before)} lacks a {name} after {_shown(self.before)}; write {printable(line)}"

    def _unexpected(self, wanted: str) -> str:
        if self.token.kind == "end":
            return f"ends in line {self._line(self.before)} where {wanted} is expected; write the rest"
        if self.token.text in ("'", '"'):
            line = self.text[self.token.start :].partition("\n")[0]
            return f"line {self._line(self.token)} has a text without its closing quote: {printable(line[:60])}"
        remedy = 'write straight quotes: "' if self.token.text in QUOTES else "correct that line"
        return f"{self._here()} stands where {wanted} is expected; {remedy}"

    def _unclosed(self, opening: _Token) -> str:
        return f"the {opening.text} of line {self._line(opening)} is not closed; add {CLOSING[opening.text]}"

    def _here(self) -> str:
        return f"{_shown(self.token)} in line {self._line(self.token)}"

    def _line(self, token: _Token) -> int:
        return self.text.count("\n", 0, token.start) + 1


def _literal(text: str) -> str:
    """Return the text that a literal of JSON or, if it is none, of Python stands for."""
    if text[0] == '"' and not text.startswith('"""'):
        try:
            return str(json.loads(text, strict=False))
        except ValueError:
            pass
    with warnings.catch_warnings(action="error"):  # for a backslash that escapes nothing
        try:
            return str(ast.literal_eval(text))
        except Warning as error:
            raise ValueError(str(error)) from error


def as_number(text: str) -> float:
    """Return the number that a text stands for, of the type int if it is one. Raises ValueError if there is none."""
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


def _shown(token: _Token) -> str:
    text = token.text if len(token.text) <= 60 else f"{token.text[:57]}..."
    return printable(text)


def _quoted(text: str) -> str:
    return text if text[:1] in ("'", '"') else json.dumps(text, ensure_ascii=False)
