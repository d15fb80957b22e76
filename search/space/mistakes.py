"""Describe a mistake in optimizer.json as one sentence, with the form that works."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from search.space.expressions import remedy

Levels = Mapping[str, Sequence[str]]  # keys that are known in the file, in spec, in a parameter with a range or values

# What to add, by the name of a key that is missing.
MISSING = {"algorithm": '"algorithm": "bayes"', "min": '"min": NUMBER', "max": '"max": NUMBER'}

# Words of other programs, without case and underscores, by the word of Comet's schema.
BOUNDS = ("range", "bounds", "interval", "limits", "domain")
KEYS: dict[str, tuple[str, ...]] = {
    "algorithm": ("algo", "method", "sampler", "strategy"),
    "parameters": ("params", "hyperparameters", "hyperparams", "space", "searchspace"),
    "maxCombo": ("maxtrials", "numtrials", "ntrials", "maxevals", "numsamples"),
    "metric": ("metrics", "monitor"),
    "objective": ("goal", "direction", "mode"),
    "seed": ("randomseed", "randomstate"),
    "min": ("minvalue", "minimum", "low", "lower", "lowerbound", "from", "start"),
    "max": ("maxvalue", "maximum", "high", "upper", "upperbound", "to", "end", "stop"),
    "values": ("value", "choices", "choice", "options", "categories", "list", "candidates", "feasiblepoints"),
    "scalingType": ("scaling", "scale", "distribution", "log", "prior"),
    "step": ("stepsize", "q", "increment"),
}
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "algorithm": {"bayes": ("tpe", "bayesian", "bayesopt", "gp")},
    "type": {
        "integer": ("int", "quniform", "randint"),
        "float": ("real", "number", "continuous"),
        "categorical": ("str", "string", "bool", "boolean", "choice", "enum"),
    },
    "scalingType": {"loguniform": ("log", "logarithmic", "loguniformvalues", "true"), "uniform": ("false", "none")},
    "objective": {"minimize": ("min", "minimum"), "maximize": ("max", "maximum")},
}


def describe(error: ValidationError, content: Any, levels: Levels, defaults: Mapping[str, Any]) -> str:
    """Return one sentence about a mistake that pydantic found: an unknown key, which explains a missing one, first."""
    found = error.errors(include_url=False)
    first = next((mistake for mistake in found if mistake["type"] == "extra_forbidden"), found[0])
    steps = [str(step) for step in first["loc"]]
    in_parameter = steps[0:1] == ["parameters"] and len(steps) > 1
    default = defaults.get(steps[1]) if in_parameter else None
    if in_parameter and (sentence := _wrong_parameter(steps[1], content["parameters"][steps[1]], defaults)):
        return sentence
    kind = steps.pop(2) if in_parameter and len(steps) > 2 else ""  # the type, by which pydantic chose the model
    if first["type"] != "extra_forbidden":
        return _wrong_value(".".join(steps) or "the file", first, default)
    if not in_parameter:
        return _unknown_key(steps, first["input"], content, levels)
    level = "values" if kind in ("discrete", "categorical") else "range"
    return _unknown_in_parameter(
        ".".join(steps[:-1]), steps[-1], content["parameters"][steps[1]], levels[level], default
    )


def _wrong_parameter(name: str, given: Any, defaults: Mapping[str, Any]) -> str:
    """Describe a parameter whose name or whole form is not ours; empty if a single key is wrong."""
    where = f"parameters.{name}"
    if inside := dict(_inside(given, defaults)):
        status = "holds other parameters" if name in defaults else "is no parameter"
        return f"{where} {status}; move {', '.join(inside)} into parameters: {form(**inside)}"
    if name not in defaults:
        return unknown_parameter(name, defaults)
    return _foreign_form(where, given, defaults[name]) if isinstance(given, dict) else ""


def unknown_parameter(name: str, defaults: Mapping[str, Any]) -> str:
    meant = nearest(name, sorted(defaults), _initials(defaults))
    known = f"write {json.dumps(meant)}" if meant else f"remove it, or write one of {', '.join(sorted(defaults))}"
    return f"unknown parameter {shown(name)}; {known}"


def _initials(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {name: ("".join(word[0] for word in name.split("_")),) for name in names if "_" in name}


def _inside(given: Any, defaults: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Find the parameters that are nested in another one."""
    for key, value in given.items() if isinstance(given, dict) else ():
        if known := nearest(key, defaults, _initials(defaults), cutoff=1):
            yield known, value
        else:
            yield from _inside(value, defaults)


def _foreign_form(where: str, given: Mapping[str, Any], default: Any) -> str:
    """Describe bounds or values in the form of another program; empty if there are none."""
    kind, scaling = (
        plain(given.get(one, given.get(other, ""))) for one, other in (("_type", "type"), ("scalingType", ""))
    )
    is_range = re.search("uniform|randint|log|range", f"{kind} {scaling}") and kind not in ("discrete", "categorical")
    for key, value in given.items():
        bounds = list(value.values()) if isinstance(value, dict) else value
        names_values = nearest(key, ["values"], KEYS, cutoff=1)
        if "_type" in given and kind == "choice" and names_values:
            return f"{where} has {key}; write {_object(**_listed(value))}"
        if not (plain(key) in BOUNDS or (names_values and is_range)) or isinstance(default, bool | str):
            continue
        if _are_numbers(bounds):
            number = {"type": "integer" if type(default) is int else "float", "min": bounds[0], "max": bounds[1]}
            log = (
                {"scalingType": "loguniform"}
                if "log" in kind + scaling or any(given[k] is True for k in given if plain(k).startswith("log"))
                else {}
            )
            return f"{where} has {key}; write {_object(**number, **log)}"
        if plain(key) in BOUNDS:
            return f'{where} has {key}; write its bounds as "min" and "max"'
    return ""


def _are_numbers(bounds: Any) -> bool:
    """Say whether two bounds, perhaps with a step, are given."""
    numbers = isinstance(bounds, list) and len(bounds) in (2, 3) and not any(isinstance(b, bool) for b in bounds)
    return numbers and all(isinstance(bound, int | float) for bound in bounds)


def _unknown_key(steps: Sequence[str], value: Any, content: Mapping[str, Any], levels: Levels) -> str:
    """Describe an unknown key of the file or its spec; it may belong into the other."""
    *above, key = steps
    here, other = ("spec", "file") if above else ("file", "spec")
    if target := nearest(key, levels[here], KEYS):
        return _renamed(".".join(steps), target, value, content["spec"] if above else content)
    if target := nearest(key, levels[other], KEYS, cutoff=1):
        place = "beside spec" if above else "in spec"
        return f"{'.'.join(steps)} is in the wrong place; write {place}: {form(**{target: value})}"
    return f"unknown key {'.'.join(steps)!r}; remove it, or write one of {', '.join(levels[here])}"


def _unknown_in_parameter(where: str, key: str, given: Mapping[str, Any], known: Sequence[str], default: Any) -> str:
    """Describe an unknown key of a parameter that has a range or, if `values` is known, a list."""
    others = [other for other in ("values", "min", "max", "step") if other not in known]
    target = nearest(key, [*known, *others], KEYS)
    value = given[key]
    if target == "step":
        return f"{where}.{key}: there are no steps; write {_steps(given)}"
    if target == "values" and target not in known:
        return f"{where} lists values; write {_object(**_listed(value))} alone"
    if target in ("min", "max") and target not in known:
        if "values" in given:
            return f"{where} has {key} beside values; write {_object(**_listed(given['values']))} alone"
        return f"{where} has {key}; write {form(type='integer' if type(default) is int else 'float')}"
    if target:
        return _renamed(f"{where}.{key}", target, value, given)
    return f"unknown key {f'{where}.{key}'!r}; remove it, or write one of {', '.join(known)}"


def _renamed(where: str, target: str, value: Any, siblings: Mapping[str, Any]) -> str:
    if target in siblings:
        return f"{where} is another word for {target}; keep one of the two, as {target}"
    meant = nearest(str(value), WORDS[target], WORDS[target]) if target in WORDS else ""
    return f"unknown key {where!r}; write {form(**{target: meant or value})}"


def _steps(given: Mapping[str, Any]) -> str:
    """Return the values of a range with a step; an example if they are many."""
    numbers = [given[key] for name in ("min", "max", "step") for key in given if nearest(key, [name], KEYS, cutoff=1)]
    if len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers):
        low, high, step = numbers
        if 0 < step <= high - low <= 20 * step:
            return _object(**_listed([round(low + step * index, 12) for index in range(1 + int((high - low) / step))]))
    return 'a list of values, such as {"type": "discrete", "values": [8, 16, 24]}'


def _wrong_value(key: str, mistake: Mapping[str, Any], default: Any) -> str:
    """Write pydantic's error about a known key as one sentence: key, value, remedy."""
    value, message = mistake["input"], mistake["msg"].removeprefix("Value error, ")
    name, kind = key.rpartition(".")[2], mistake["type"]
    if kind in ("literal_error", "union_tag_invalid"):
        expected = mistake["ctx"]["expected" if kind == "literal_error" else "expected_tags"]
        return _wrong_word(key, value, re.findall(r"'(\w+)'", expected), default)
    if kind == "union_tag_not_found":
        return f"{key} has no type; add {form(type=_type_for(value, default))}"
    meant = remedy(str(value))
    whole = meant if re.fullmatch(r"write \d+", meant) else "write a whole number"
    bound = next(iter(mistake.get("ctx", {}).values()), "")
    sentences = {
        "missing": f"{key} is missing; add {MISSING.get(name, 'it')}",
        "too_short": f"{key} is empty; name at least one",
        "too_long": f"{key} has more than {bound} values; name fewer, or give min and max",
        "value_error": f"{key} {message}",
        "greater_than_equal": f"{key} is {shown(value)}; write a number of at least {bound}",
        "less_than_equal": f"{key} is {shown(value)}; write a number of at most {bound}",
        "int_type": f"{key} is {shown(value)}; {whole}",
        "bool_type": f"{key} is {shown(value)}; write true or false",
        "string_type": f"{key} is {shown(value)}; write a text in quotes",
        "dict_type": f"{key} is {shown(value)}; write braces with a key for each entry: {{ }}",
        "model_type": f"{key} is {shown(value)}; write braces with a key for each entry: {{ }}",
    }
    if key == "spec":
        return f"spec is {shown(value)}; write {form(spec={'maxCombo': 30})}"
    return sentences.get(kind, f"{key} is {shown(value)}; {message[0].lower()}{message[1:]}")


def _wrong_word(key: str, value: Any, known: Sequence[str], default: Any) -> str:
    """Describe a value that is none of the known words."""
    if isinstance(value, dict):  # a parameter with a wrong type
        given = value.get("type")
        if plain(given) in ("uniform", "loguniform", "linear", "log"):
            scaling = "loguniform" if plain(given).startswith("log") else "uniform"
            number = "integer" if type(default) is int else "float"
            return f"{key}.type is {shown(given)}; write {form(type=number, scalingType=scaling)}"
        key, value = f"{key}.type", given
    name = key.rpartition(".")[2]
    if meant := nearest(str(value), known, WORDS.get(name, {})):
        return f"{key} is {shown(value)}; write {form(**{name: meant})}"
    return f"{key} is {shown(value)}; it must be one of {', '.join(known)}"


def _type_for(given: Mapping[str, Any], default: Any) -> str:
    """Return the type that a parameter without one should have."""
    texts = isinstance(default, bool | str)
    if texts or any(nearest(key, ["values"], KEYS, cutoff=1) for key in given):
        return "categorical" if texts else "discrete"
    return "integer" if type(default) is int else "float"


def _listed(values: Any) -> dict[str, Any]:
    values = values if isinstance(values, list) else [values]
    return {"type": "categorical" if any(isinstance(value, str) for value in values) else "discrete", "values": values}


def nearest(word: str, known: Iterable[str], foreign: Mapping[str, Sequence[str]], cutoff: float = 0.7) -> str:
    """Return the known word that `word` is meant to be, perhaps in the words of another program; empty if none."""
    by_key = {plain(name): name for name in known}
    for ours in known:
        by_key.update(dict.fromkeys(foreign.get(ours, ()), ours))
    if plain(word) in by_key:
        return by_key[plain(word)]
    closest = get_close_matches(plain(word), by_key, n=1, cutoff=cutoff)
    return by_key[closest[0]] if closest else ""


def plain(word: Any) -> str:
    return re.sub(r"[\W_]", "", str(word)).lower()


def form(**entries: Any) -> str:
    """Write entries as they stand in the file."""
    text = json.dumps(entries, ensure_ascii=False, default=str)[1:-1]
    return text if len(text) <= 120 else f"{text[:117]}..."


def shown(value: Any) -> str:
    """Write a value for a message."""
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _object(**entries: Any) -> str:
    return f"{{{form(**entries)}}}"
