"""Mutations of real-looking search spaces: each is a space, or one sentence about one mistake."""

import contextlib
import copy
import json
import resource
import signal

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cli import parse
from pipeline.plan import _sweep
from pipeline.space import FIXED, make_space
from pipeline.task import DEFAULTS
from search.space.space import Space
from search.study.warm_start import first_proposals
from tests.conftest import ROOT

CPU_SECONDS, BYTES = 5, 10**9
COMETS = {  # as in Comet's documentation and in public repositories
    "algorithm": "bayes",
    "name": "Optimize My Network",
    "trials": 1,
    "parameters": {
        "optimizer": "adam",
        "learning_rate": {"type": "float", "scalingType": "loguniform", "min": 0.0000001, "max": 0.0005},
        "stem_width": {"type": "integer", "mu": 500, "sigma": 50, "min": 32, "max": 64},
        "dropout": {"type": "double", "min": 0.0, "max": 0.6},
        "batch_size": {"type": "discrete", "values": [16, 32, 64]},
        "schedule": {"type": "categorical", "values": ["constant", "cosine"]},
        "share_body": [True, False],
        "epochs": [5, 10],
    },
    "spec": {"maxCombo": 35, "objective": "minimize", "metric": "val_loss", "seed": None, "gridSize": 10,
             "minSampleSize": 100, "retryLimit": 20, "retryAssignLimit": 0},
}  # fmt: skip
RELATED = {
    "algorithm": "grid",
    "parameters": {
        "image_size": {"type": "integer", "min": 64, "max": 1024, "gridSize": 1000},
        "body_repeats": [1, 2, 3],
        "residual_blocks": [0, 1, 2, 3],
        "global_pool": ["true"],
        "batch_size": [1, 8, 16],
        "start_scale": {"type": "float", "min": 0.25, "max": 1},
    },
    "spec": {"maxCombo": 8, "metric": "val_accuracy", "objective": "maximize"},
}
BASES = [*(json.loads(path.read_text()) for path in ROOT.glob("configs/*.json")), COMETS, RELATED]
WORDS = ["scaling_type", "lower", "../..", "choices", "value", "step", "lr", "log", "loguniform", "normal", "int", "categorical",
         "discrete", "float", "grid", "tpe", "min", "max", "type", "values", "image_size", "body_repeats", "16",
         "true", "1e-3", "ä \U0001f600", "\x1b[2J", "a\nb", "\ud800", "", "x" * 300]  # fmt: skip
ODD = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 0.5, 1e308, -1e-320, 2**53, 10**30, 10**300, [], {}, [[1]], [{}]]),
    st.sampled_from([*WORDS, [None, 0.1], [True, 1], [1, "1"], list(range(3000)), [0.1] * 3, {"type": "float"}]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)
MARKS = st.sampled_from(
    [*"{}[]()\"',:;=#/\\*+-.eE0\n\t \u201c\u201d\ufeff\x00\x1b", "//", "/*", "NaN", "null", "[" * 9000, "'''", '"""']
)


@st.composite
def mutations(draw):
    """The bytes of a mutated file."""
    content = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(0, 2))):
        mutate(draw, content)
    text = draw(st.sampled_from([to_json, str, lambda value: json.dumps(value, indent=2)]))(content)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        text = mutate_text(draw, text)
    encoding = draw(st.sampled_from(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le"]))
    return text.encode(encoding, errors="backslashreplace")


def to_json(content):
    return json.dumps(content, ensure_ascii=False)


def mutate(draw, content):
    """Change one entry, anywhere in the content."""
    places = list(entries(content))
    if not places:
        return
    inside, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "delete", "rename", "swap", "nest", "add"])):
        case "replace":
            inside[key] = copy.deepcopy(draw(ODD))
        case "delete":
            del inside[key]
        case "rename" if isinstance(inside, dict):
            inside[draw(st.sampled_from(WORDS))] = inside.pop(key)
        case "swap":
            other, name = draw(st.sampled_from(places))
            inside[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(inside[key])
        case "nest":
            for _ in range(draw(st.sampled_from([1, 10, 100]))):
                inside[key] = [inside[key]]
        case "add" if isinstance(inside, dict):
            inside[draw(st.sampled_from(WORDS))] = copy.deepcopy(draw(ODD))


def entries(content):
    """The places of all entries: (the dictionary or list, the key or index)."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from entries(content[key])


def mutate_text(draw, text):
    start = draw(st.integers(0, len(text)))
    end = min(len(text), start + draw(st.sampled_from([0, 1, 2, 40])))
    between = draw(st.sampled_from(["", text[start:end] * 2, draw(MARKS)]))
    return draw(st.sampled_from([text[:start], text[:start] + between + text[end:]]))


def plan(path):
    """Read a search space and everything else of a plan that depends on it."""
    options = parse([str(path), "--no-baseline"])
    fixed = {name: DEFAULTS[name] for name in FIXED}
    space = make_space(options, "", fixed, print)
    _sweep(options, space, fixed, "")
    first_proposals(space, 2)
    return space


@contextlib.contextmanager
def limits():
    """Allow seconds of the processor and bytes of memory; neither depends on other programs."""

    def stop(*_):
        raise AssertionError(f"it took more than {CPU_SECONDS} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def require_space_or_sentence(path, content):
    path.write_bytes(content)
    try:
        with limits():
            assert isinstance(plan(path), Space)
    except ValueError as error:
        sentence = str(error)
        assert sentence.startswith(f"{path}: "), sentence
        assert sentence.isprintable(), sentence
        assert len(sentence) < 700, sentence


def examples(number):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@examples(200)
@given(content=mutations())
def test_mutated_file_is_a_space_or_one_sentence(tmp_path, content):
    require_space_or_sentence(tmp_path / "mutated.json", content)


@pytest.mark.slow
@examples(5000)
@given(content=mutations())
def test_5000_mutated_files_are_spaces_or_one_sentence(tmp_path, content):
    require_space_or_sentence(tmp_path / "mutated.json", content)


@pytest.mark.slow
@examples(2000)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
def test_arbitrary_files_are_one_sentence(tmp_path, content):
    require_space_or_sentence(tmp_path / "arbitrary.json", content)
