"""Say what to write instead of a calculation, a call or a localised number, which optimizer.json cannot have."""

import ast
import json
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

PLAIN_VALUE = 'write the value itself, such as 8, 0.001 or "text"'
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
MAX_LENGTH = 200
OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {  # with floats, whose results stay small
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def remedy(text: str, *, whole: bool = False) -> str:
    """Return the end of a sentence: what to write instead of `text`; empty if it is not understood.

    With `whole`, a comma in it separates whole numbers, if not thousands.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH:
        return ""
    if prefixed := re.fullmatch(r"[a-zA-Z]{1,2}(['\"])(.*)\1", text):
        return f"write {json.dumps(prefixed[2], ensure_ascii=False)}"
    if bounds := re.fullmatch(rf"({NUMBER})\s*(?:-|\.\.+|to)\s*({NUMBER})", text):
        low, high = (float(bound) for bound in bounds.groups())
        if low < high:
            return _range(low, high)
    number = _localised(text)
    is_list = re.fullmatch(rf"{NUMBER}(?:\s*,\s*{NUMBER})+", text) and not re.search(r"(?<![\d.])0\d", text)
    if is_list and (number is None or (whole and number % 1)):
        return f"write [{', '.join(re.findall(NUMBER, text))}]"
    return _of_python(text) if number is None else f"write {number:.12g}"


def _localised(text: str) -> float | None:
    """Return the number that is meant by 10%, 0,001, 1 000 or 1,000."""
    if percent := re.fullmatch(r"([+-]?\d+(?:[.,]\d+)?)\s*%", text):
        return float(percent[1].replace(",", ".")) / 100
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}(?:([ _,'\u00a0\u202f])\d{3})(?:\1\d{3})*", text):
        return float(re.sub(r"[ _,'\u00a0\u202f]", "", text))
    if re.fullmatch(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", text):
        return float(text.replace(",", "."))
    return None


def _of_python(text: str) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):
            node = ast.parse(text.replace("^", "**"), mode="eval").body
        return _of_call(node) if isinstance(node, ast.Call) else f"write {_calculated(node):.12g}"
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        return ""


def _calculated(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.UnaryOp(op=ast.USub()):
            return -_calculated(node.operand)
        case ast.BinOp() if type(node.op) in OPERATIONS:
            number = OPERATIONS[type(node.op)](_calculated(node.left), _calculated(node.right))
            if isinstance(number, float) and math.isfinite(number):  # a root of -1 is complex
                return number
    raise ValueError("not a calculation with numbers")


def _of_call(call: ast.Call) -> str:
    """Return the form that stands for the call of a range or of a choice in other programs."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    lists = [node for node in arguments if isinstance(node, ast.List | ast.Tuple)]
    if lists:
        values = ast.literal_eval(lists[0])
        return f"write {json.dumps(list(values), ensure_ascii=False)}"
    if name in ("int", "float", "str", "bool") and len(arguments) == 1:
        value = ast.literal_eval(arguments[0])
        return f"write {json.dumps(value, ensure_ascii=False)}"
    numbers = [_calculated(node) for node in arguments if not _is_text(node)]
    low, high = (1.0, numbers[0]) if len(numbers) == 1 else (*numbers[:2], 0.0, 0.0)[:2]
    if name == "logspace":
        low, high = 10.0**low, 10.0**high
    is_log = "log" in name
    if not low < high or (is_log and low <= 0):
        return ""
    return _range(low, high, "loguniform" if is_log else "uniform")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _range(low: float, high: float, scaling: str = "uniform") -> str:
    whole = low.is_integer() and high.is_integer() and high > 1
    bounds = [int(low), int(high)] if whole else [low, high]
    given = {"type": "integer" if whole else "float", "min": bounds[0], "max": bounds[1]}
    given |= {"scalingType": scaling} if scaling != "uniform" else {}
    return f"list the values, or give {json.dumps(given)}"
