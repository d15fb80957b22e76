import json
from dataclasses import asdict, replace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.space import check_alone
from pipeline.task import METRICS, SEARCHABLE, configure
from search.space.space import derive_seed, load_space
from search.study.create import create_study, require_settings
from search.study.warm_start import first_proposals
from tests.conftest import ROOT
from tests.servers.counting_sweep import make_sweep

WIDTH = {"stem_width": {"type": "integer", "min": 2, "max": 8}}


def load(path, image_size=64):
    return load_space(path, SEARCHABLE, METRICS, lambda parameters: configure(parameters, {"image_size": image_size}))


def one(write_space, name, parameter, **spec):
    spec = {"maxCombo": 3, **spec}
    return load(write_space(parameters={name: parameter}, spec=spec))


def test_shipped_space_is_valid_and_in_comets_schema_alone():
    content = json.loads((ROOT / "configs/optimizer.json").read_text())
    assert set(content) == {"algorithm", "name", "trials", "parameters", "spec"}
    for name in ("optimizer", "quick"):
        space = load_space(ROOT / f"configs/{name}.json", SEARCHABLE, METRICS, check_alone)
        assert space.goal.metric == "best_val_loss"


@pytest.mark.parametrize(
    ("name", "parameter", "distribution"),
    [
        ("stem_width", {"type": "integer", "min": 2, "max": 8}, IntDistribution(2, 8)),
        ("stem_width", {"type": "integer", "min": 2, "max": 8, "scalingType": "linear"}, IntDistribution(2, 8)),
        ("stem_width", {"type": "integer", "min": 2, "max": 8, "scalingType": "loguniform"}, IntDistribution(2, 8, log=True)),
        ("dropout", {"type": "float", "min": 0, "max": 0.5, "scalingType": "uniform"}, FloatDistribution(0, 0.5)),
        ("learning_rate", {"type": "double", "min": 1e-4, "max": 1, "scalingType": "loguniform"}, FloatDistribution(1e-4, 1, log=True)),
        ("stem_width", {"type": "discrete", "values": [8, 16, 24]}, IntDistribution(8, 24, step=8)),
        ("stem_width", {"type": "discrete", "values": [8, 16, 32]}, CategoricalDistribution([8, 16, 32])),
        ("dropout", {"type": "discrete", "values": [0.1, 0.2]}, CategoricalDistribution([0.1, 0.2])),
        ("schedule", {"type": "categorical", "values": ["constant", "cosine"]}, CategoricalDistribution(["constant", "cosine"])),
        ("stem_width", [8, 16, 32], CategoricalDistribution([8, 16, 32])),
        ("schedule", "cosine", CategoricalDistribution(["cosine"])),
    ],
)  # fmt: skip
def test_every_type_of_comets_schema_has_its_distribution(write_space, name, parameter, distribution):
    assert one(write_space, name, parameter).distributions == {name: distribution}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 3}, "unknown key 'budget'; remove it, or write one of algorithm, name, trials, parameters, spec"),
        ({"spec": {"maxcombo": 3}}, "unknown key 'spec.maxcombo'; write \"maxCombo\": 3"),
        ({"algorithm": "sobol"}, "algorithm is 'sobol'; it must be one of bayes, random, grid"),
        ({"algorithm": None}, 'algorithm is missing; add "algorithm": "bayes"'),
        ({"trials": 2}, "trials is 2; set it to 1"),
        ({"parameters": {}}, "parameters is empty; name at least one"),
        ({"parameters": {"depth": {"type": "integer", "min": 1, "max": 2}}}, "unknown parameter 'depth'; remove it, or write one of"),
        ({"parameters": {"classes": [2]}}, "unknown parameter 'classes'"),
        ({"parameters": {"stem_width": {"min": 1, "max": 2}}}, 'parameters.stem_width has no type; add "type": "integer"'),
        ({"parameters": {"stem_width": {"type": "foo", "min": 1}}}, "stem_width.type is 'foo'; it must be one of integer"),
        ({"parameters": {"stem_width": {"type": "integer", "min": 8, "max": 2}}}, "stem_width has min 8 above max 2"),
        ({"parameters": {"stem_width": {"type": "integer", "min": 8}}}, 'stem_width.max is missing; add "max": NUMBER'),
        ({"parameters": {"stem_width": {"type": "integer", "min": 1.5, "max": 2}}}, "is an integer from 1.5 to 2; give whole numbers"),
        ({"parameters": {"dropout": {"type": "integer", "min": 0, "max": 0.5}}}, "give whole numbers or type float"),
        ({"parameters": {"stem_width": {"type": "integer", "min": "a", "max": 2}}}, "stem_width.min is 'a'; give a number"),
        ({"parameters": {"stem_width": {"type": "integer", "min": 0, "max": 2}}}, "parameters.stem_width: stem_width is 0"),
        ({"parameters": {"body_repeats": {"type": "integer", "min": 2, "max": 6}}}, "body_repeats 6 needs an image_size of at least 256"),
        ({"parameters": {"stem_width": {"type": "float", "min": 1, "max": 2}}}, "stem_width.type is 'float'; set it to 'integer'"),
        ({"parameters": {"stem_width": [2.5]}}, "stem_width is 2.5; it must be a whole number"),
        ({"parameters": {"stem_width": ["a"]}}, "stem_width is 'a'; it must be a whole number"),
        ({"parameters": {"learning_rate": ["fast"]}}, "learning_rate is 'fast'; it must be a number"),
        ({"parameters": {"schedule": [1]}}, "schedule is 1; it must be one of constant, cosine"),
        ({"parameters": {"share_body": ["maybe"]}}, "share_body is 'maybe'; it must be \"true\" or \"false\""),
        ({"parameters": {"schedule": ["step"]}}, "schedule is 'step'; it must be one of constant, cosine"),
        ({"parameters": {"stem_width": {"type": "discrete", "values": []}}}, "stem_width.values is empty"),
        ({"parameters": {"stem_width": {"type": "discrete", "values": ["a"]}}}, "stem_width is 'a'; it must be a whole number"),
        ({"parameters": {"schedule": {"type": "categorical", "values": [1]}}}, "schedule is 1; it must be one of constant"),
        ({"parameters": {"stem_width": [8, 8]}}, "repeats a value"),
        (
            {"parameters": {"learning_rate": {"type": "float", "min": 0, "max": 1, "scalingType": "loguniform"}}},
            "learning_rate is loguniform with min 0; set min above 0 or scalingType to uniform",
        ),
        (
            {"parameters": {"dropout": {"type": "float", "mu": 0.3, "sigma": 0.1, "scalingType": "normal"}}},
            'scalingType normal has no counterpart in Optuna; write "scalingType": "uniform" with "min" and "max"',
        ),
        ({"spec": {"metric": "f1"}}, "spec.metric is 'f1'; it must be one of val_loss, best_val_loss"),
        ({"spec": {"objective": "maximize"}}, "spec.objective is 'maximize' for best_val_loss; set it to 'minimize'"),
        ({"spec": {"maxCombo": -1}}, "spec.maxCombo is -1"),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence_with_file_key_and_remedy(write_space, changes, message):
    path = write_space(**changes)
    with pytest.raises(ValueError, match=r"optimizer\.json: ") as error:
        load(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_grid_is_the_product_of_its_bins(write_space):
    parameters = {
        "stem_width": {"type": "integer", "min": 2, "max": 4},
        "learning_rate": {"type": "float", "min": 1e-4, "max": 1e-2, "scalingType": "loguniform", "gridSize": 3},
        "schedule": ["constant", "cosine"],
    }
    space = load(write_space(algorithm="grid", parameters=parameters, spec={"gridSize": 5}))
    assert space.parameters["learning_rate"].grid(5) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert space.num_trials == 3 * 3 * 2 + 1  # and the baseline
    assert replace(space, baseline=None).num_trials == 3 * 3 * 2


@pytest.mark.parametrize("algorithm", ["bayes", "random", "grid"])
def test_proposals_depend_on_seed_and_number_alone(write_space, algorithm):
    space = load(write_space(algorithm=algorithm))
    assert first_proposals(space, 5) == first_proposals(space, 5)
    assert len({json.dumps(parameters) for parameters in first_proposals(space, 5)}) == 5


def test_first_proposal_is_the_readme_configuration(write_space):
    space = load(write_space(parameters={**WIDTH, "share_body": ["true", "false"]}))
    assert space.baseline == {"stem_width": 64, "share_body": "true"}
    assert first_proposals(space, 1) == [space.baseline]
    assert space.baseline_is_outside
    without = replace(space, baseline=None)
    assert not without.baseline_is_outside
    assert first_proposals(without, 2)[1] == first_proposals(space, 2)[1]


def test_parameters_with_a_single_value_are_not_searched(write_space):
    single = {"optimizer": ["muon"], "body_repeats": {"type": "integer", "min": 3, "max": 3}, "ema": [0.9995]}
    space = load(write_space(parameters={**WIDTH, "share_body": ["true", "false"], **single}))
    assert space.constants == {"optimizer": "muon", "body_repeats": 3, "ema": 0.9995}


@pytest.mark.parametrize(
    ("parameter", "outside"),
    [
        ({"type": "integer", "min": 2, "max": 64}, False),
        ({"type": "integer", "min": 2, "max": 63}, True),
        ({"type": "discrete", "values": [32, 64, 96]}, False),
        ({"type": "discrete", "values": [30, 60, 90]}, True),
        ({"type": "discrete", "values": [2, 3, 64]}, False),
    ],
)
def test_space_knows_whether_it_holds_the_baseline(write_space, parameter, outside):
    assert one(write_space, "stem_width", parameter).baseline_is_outside is outside


def test_tpe_learns_beside_a_baseline_outside_the_space(write_space):
    space = one(write_space, "learning_rate", {"type": "float", "min": 0.001, "max": 1})
    study = optuna.create_study()
    study.enqueue_trial({}, user_attrs={"parameters": space.baseline})
    study.tell(study.ask(), 100.0)
    for number in range(1, 40):
        study.sampler = space.sampler(number)
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, (trial.params["learning_rate"] - 0.3) ** 2)
    late = [abs(trial.params["learning_rate"] - 0.3) for trial in study.trials[-10:]]
    assert sum(late) / 10 < 0.2  # random search: 0.29


WAYS = [  # to write one space
    {"x": [1, 2], "y": {"type": "float", "min": 0, "max": 1}, "z": 5},
    {
        "z": {"type": "discrete", "values": [5]},
        "x": {"type": "discrete", "values": [1, 2]},
        "y": {"type": "float", "min": 0, "max": 1.0},
    },
    {"x": ["1", 2], "y": {"type": "double", "min": "0", "max": 1, "scalingType": "linear", "mu": 1}, "z": "5"},
]


@pytest.mark.parametrize("before", WAYS[:2])
@pytest.mark.parametrize("now", WAYS)
def test_file_that_is_written_in_another_way_resumes_the_sweep(tmp_path, before, now):
    """An earlier version stored the parameters as they stood in the file."""
    sweep = make_sweep(tmp_path / "runs/same", 4, parameters=before)
    study = create_study(sweep, {"parameters": before}).optuna
    sweep.space.suggest(study.ask())
    again = make_sweep(tmp_path / "runs/same", 4, parameters=now)
    require_settings(again, study, {"parameters": again.space.content["parameters"]})
    again.space.suggest(study.ask())
    other = make_sweep(tmp_path / "runs/same", 4, parameters={**now, "y": {"type": "float", "min": 0, "max": 2}})
    with pytest.raises(ValueError, match=r"parameters\.y\.max was 1.*, is 2"):
        require_settings(other, study, {"parameters": other.space.content["parameters"]})


def test_seeds_differ_between_trials_and_not_between_machines():
    assert derive_seed(1, 0) == 1835504127
    assert len({derive_seed(seed, number) for seed in range(10) for number in range(100)}) == 1000


def test_goal_counts_best_or_last_epoch(write_space):
    best = one(write_space, "stem_width", [4]).goal
    assert best.index([0.5, 0.2, 0.3]) == 1
    assert [best.replaces(0.2, before) for before in (None, 0.3, 0.2, 0.1)] == [True, True, False, False]
    last = one(write_space, "stem_width", [4], metric="val_accuracy", objective="maximize").goal
    assert last.index([0.5, 0.2, 0.3]) == 2
    assert last.replaces(0.1, 0.9)
    assert asdict(last) == {"metric": "val_accuracy", "direction": "maximize"}
