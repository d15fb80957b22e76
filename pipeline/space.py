"""Read the search space that a sweep's options name; name the sweep."""

import argparse
import re
import unicodedata
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from catdog.model import MAX_BODY_REPEATS, MAX_IMAGE_SIZE
from pipeline.profiling import Say
from pipeline.task import DEFAULTS, METRICS, SEARCHABLE, cast, configure
from search.comet.client import wait_for_comet
from search.comet.optimizer import read_search
from search.space.mistakes import shown
from search.space.schema import known_keys
from search.space.space import Parameters, Space, load_space
from search.study.sweep import RUNS, Sweep, holds_study

DEFAULT_CONFIG = Path("configs/optimizer.json")
NAME = r"[\w][\w.-]*"  # of a sweep
MAX_NAME = 200  # bytes; file systems take 255
FIXED = ("epochs", "image_size")  # the same for every trial unless they are searched
RELATED = ("image_size", "body_repeats", "residual_blocks", "global_pool", "batch_size", "start_scale")  # must suit


def make_space(options: argparse.Namespace, search_id: str, fixed: Parameters, say: Say) -> Space:
    """Read the search space, or a search at Comet. Raises ValueError for values that no trial could use."""
    if not search_id and _sweep_at(options.config) and not options.config.is_file():
        remedy = how_to_name(options.config, "repeat its command with --name")
        raise ValueError(f"{options.config} is a sweep, not a search space; {remedy}")
    if not search_id and options.config == DEFAULT_CONFIG and not options.config.exists():
        remedy = f"start the command in {Path(__file__).parents[1]}, or name a search space"
        raise ValueError(f"there is no {options.config} in {Path.cwd()}; {remedy}")
    ask = partial(read_search, search_id)
    content = known_keys(wait_for_comet(ask, Sweep.patience, say)) if search_id else None
    space = load_space(options.config, SEARCHABLE, METRICS, check_alone, content)
    for name in FIXED:
        if name in space.parameters and getattr(options, name) is not None:
            fixed_here = f"fixed at {space.constants[name]} there" if name in space.constants else "searched"
            raise ValueError(f"{options.config}: {name} is {fixed_here}; leave out --{name.replace('_', '-')}")
    # Along each parameter, values that suit the others become unsuited at most once, so the ends show it.
    ends = [_ends(name, space.values_of(name) or [fixed.get(name, DEFAULTS[name])]) for name in RELATED]
    for values in product(*ends):
        try:
            configure(dict(zip(RELATED, values, strict=True)), fixed)
        except ValueError as error:
            raise ValueError(f"{options.config}: {error}") from error
    seed = space.seed if options.seed is None else options.seed
    return replace(space, seed=seed, baseline=space.baseline if options.baseline else None)


def _sweep_at(path: Path) -> Path | None:
    """Return the folder of the sweep that a path leads to, from runs/ or from the current directory."""
    with suppress(OSError):  # such as a name that is too long
        return next(filter(holds_study, (RUNS / path, path)), None)
    return None


def _ends(name: str, values: list[Any]) -> list[Any]:
    ordered = sorted(values, key=partial(cast, name))
    return list(dict.fromkeys([ordered[0], ordered[-1]]))


def check_alone(values: Parameters) -> None:
    """Raise ValueError for a value that no network can have, whatever its other parameters."""
    lenient = {"image_size": MAX_IMAGE_SIZE, "body_repeats": 1, "residual_blocks": 1, "global_pool": True}
    if "residual_blocks" in values:
        lenient["body_repeats"] = MAX_BODY_REPEATS
    configure({**lenient, **values}, {})


def sweep_name(options: argparse.Namespace, space: Space, search_id: str) -> str:
    """Return --name or, if it is not given, the name in the search space as that of a folder."""
    if options.name is None:
        if name := as_folder(f"{space.name}-{search_id[:8]}" if search_id else space.name):
            return name
        if "name" in space.content:
            raise ValueError(f"{options.config}: name is {shown(space.name)}; use at least one letter or digit")
        raise ValueError(f'{options.config} gives the sweep no name; add "name": "my sweep", or give --name')
    if (name := as_folder(options.name)) != options.name:
        usual = "use letters, digits, '.', '_' and '-'" + (f", as in {name}" if name else "")
        remedy = how_to_name(Path(options.name), "give --name") or usual
        raise ValueError(f"--name is {shown(options.name)}; {remedy}")
    return name


def how_to_name(path: Path, give: str) -> str:
    """Say how to name the sweep that a path leads to; empty if it leads to none and not into runs/ either."""
    folder = _sweep_at(path)
    is_ours = folder.parent.resolve() == RUNS.resolve() if folder else path.parent.name == RUNS.name
    if is_ours and as_folder(path.name) == path.name:
        return f"{give} {path.name}"
    if not folder:
        return ""
    name = as_folder(folder.name) or as_folder(folder.resolve().name) or "sweep"
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    free = next(name for name in names if not (RUNS / name).exists())
    return f"move the folder {folder} to {RUNS / free} first, and {give} {free}"


def as_folder(name: str) -> str:
    """Return a folder's name for a name that is any text; empty if there is no letter or digit in it."""
    if re.fullmatch(NAME, name) and len(name.encode()) <= MAX_NAME:
        return name
    words = re.findall(r"\w[\w.]*", unicodedata.normalize("NFC", name))
    return "-".join(words).encode()[:MAX_NAME].decode(errors="ignore").rstrip("-.")
