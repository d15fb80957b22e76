"""People write other words than Comet's: whoever follows the answer has a file that works."""

import json
import re

import pytest

from pipeline.space import check_alone
from pipeline.task import METRICS, SEARCHABLE
from search.space.expressions import remedy
from search.space.space import load_space

RANGE = {"min": 0.001, "max": 0.1}
LOG = {"type": "float", **RANGE, "scalingType": "loguniform"}
WHOLE = {"type": "integer", "min": 8, "max": 64}


def load(path):
    return load_space(path, SEARCHABLE, METRICS, check_alone)


def mistake(path):
    with pytest.raises(ValueError, match=r"optimizer\.json: ") as error:
        load(path)
    assert "\n" not in str(error.value)
    assert "remove it" not in str(error.value)
    return str(error.value)


PARAMETERS = [  # a parameter as it was written, and as it works
    ("learning_rate", {"type": "float", **RANGE, "scaling_type": "loguniform"}, LOG),
    ("learning_rate", {"type": "float", **RANGE, "scalingtype": "log"}, LOG),
    ("learning_rate", {"type": "float", **RANGE, "ScalingType": "log_uniform"}, LOG),
    ("learning_rate", {"type": "float", **RANGE, "scale": "log-uniform"}, LOG),
    ("learning_rate", {"type": "float", **RANGE, "log": True}, LOG),
    ("learning_rate", {"type": "float", **RANGE, "distribution": "log_uniform_values"}, LOG),
    ("learning_rate", {"type": "float", **RANGE, "scalingType": "logUniform"}, LOG),
    ("learning_rate", {"type": "float", **RANGE, "scalingType": "log"}, LOG),
    ("learning_rate", {"type": "float", "min_value": 0.001, "max": 0.1}, {"type": "float", **RANGE}),
    ("learning_rate", {"type": "float", "min": 0.001, "maxValue": 0.1}, {"type": "float", **RANGE}),
    ("learning_rate", {"type": "float", "lower": 0.001, "max": 0.1}, {"type": "float", **RANGE}),
    ("learning_rate", {"type": "float", "min": 0.001, "high": 0.1}, {"type": "float", **RANGE}),
    ("learning_rate", {"type": "real", **RANGE}, {"type": "float", **RANGE}),
    ("learning_rate", {"type": "loguniform", **RANGE}, LOG),
    ("learning_rate", {"type": "floot", **RANGE}, {"type": "float", **RANGE}),
    ("learning_rate", RANGE, {"type": "float", **RANGE}),
    ("learning_rate", {"type": "float", "value": 0.1}, {"type": "discrete", "values": [0.1]}),
    ("stem_width", {"type": "int", "min": 8, "max": 64}, WHOLE),
    ("stem_width", {"type": "Integer", "min": 8, "max": 64}, WHOLE),
    ("stem_width", {"min": 8, "max": 64}, WHOLE),
    ("stem_width", {"type": "discrete", "min": 8, "max": 64}, WHOLE),
    ("stem_width", {**WHOLE, "grid_size": 3}, {**WHOLE, "gridSize": 3}),
    ("stem_width", {"type": "integer", "values": [8, 16]}, {"type": "discrete", "values": [8, 16]}),
    ("stem_width", {"type": "integer", "min": 8, "max": 24, "step": 8}, {"type": "discrete", "values": [8, 16, 24]}),
    ("stem_width", {"type": "discrete", "choices": [8, 16]}, {"type": "discrete", "values": [8, 16]}),
    ("stem_width", {"values": [8, 16]}, {"type": "discrete", "values": [8, 16]}),
    ("schedule", {"type": "choice", "values": ["cosine"]}, {"type": "categorical", "values": ["cosine"]}),
    ("schedule", {"type": "categorical", "options": ["cosine"]}, {"type": "categorical", "values": ["cosine"]}),
    ("schedule", {"type": "float", "values": ["cosine"]}, {"type": "categorical", "values": ["cosine"]}),
    ("share_body", {"type": "bool", "values": [True, False]}, {"type": "categorical", "values": [True, False]}),
]


@pytest.mark.parametrize(("name", "parameter", "repaired"), PARAMETERS)
def test_answer_shows_the_parameter_that_works(write_space, name, parameter, repaired):
    message = mistake(write_space(parameters={name: parameter}))
    shown = re.search(r"(?:write|add) \{?(.*?)\}?(?: alone)?$", message)[1]
    assert json.loads(f"{{{shown}}}").items() <= repaired.items(), message
    load(write_space(parameters={name: repaired}))


FILES = [  # changes of the file as they were written, the end of the answer, and changes that work
    ({"algorithm": "tpe"}, 'write "algorithm": "bayes"', {"algorithm": "bayes"}),
    ({"algorithm": "Bayes"}, 'write "algorithm": "bayes"', {"algorithm": "bayes"}),
    ({"algorithm": "randm"}, 'write "algorithm": "random"', {"algorithm": "random"}),
    ({"algorithm": None, "algo": "grid"}, 'write "algorithm": "grid"', {"algorithm": "grid"}),
    ({"maxCombo": 5, "spec": {}}, 'in spec: "maxCombo": 5', {"spec": {"maxCombo": 5}}),
    ({"spec": {"max_combo": 5}}, 'write "maxCombo": 5', {"spec": {"maxCombo": 5}}),
    ({"spec": {"n_trials": 5}}, 'write "maxCombo": 5', {"spec": {"maxCombo": 5}}),
    ({"spec": {"name": "x"}}, 'beside spec: "name": "x"', {"name": "x"}),
    ({"spec": {"direction": "minimum"}}, 'write "objective": "minimize"', {"spec": {"objective": "minimize"}}),
    ({"spec": {"objective": "minimise"}}, 'write "objective": "minimize"', {"spec": {"objective": "minimize"}}),
    ({"spec": {"objective": "min"}}, 'write "objective": "minimize"', {"spec": {"objective": "minimize"}}),
    ({"spec": {"metric": "best_val_los"}}, "did you mean best_val_loss?", {"spec": {"metric": "best_val_loss"}}),
    ({"spec": {"metric": "loss"}}, "did you mean val_loss?", {"spec": {"metric": "val_loss"}}),
    ({"parameters": {"lr": [0.1]}}, 'write "learning_rate"', {"parameters": {"learning_rate": [0.1]}}),
    ({"parameters": {"batchSize": [8]}}, 'write "batch_size"', {"parameters": {"batch_size": [8]}}),
    ({"parameters": {"learnig_rate": [0.1]}}, 'write "learning_rate"', {"parameters": {"learning_rate": [0.1]}}),
    ({"parameters": {"dropout_rate": [0.1]}}, 'write "dropout"', {"parameters": {"dropout": [0.1]}}),
    ({"parameters": {"dropout": [None, 0.1]}}, "such as its default 0.0", {"parameters": {"dropout": [0.0, 0.1]}}),
    ({"parameters": {"augmentation": "null"}}, "it must be one of none, flip, crop, color, strong", {"parameters": {"augmentation": "none"}}),
    ({"parameters": {"share_body": {**WHOLE}}}, 'such as ["true"]', {"parameters": {"share_body": ["true"]}}),
    ({"parameters": {"stem_width": [True]}}, "such as its default 64", {"parameters": {"stem_width": [64]}}),
    ({"parameters": {"stem_width": {"type": "float", "min": 8, "max": 9}}}, "set it to 'integer'", {"parameters": {"stem_width": {"type": "integer", "min": 8, "max": 9}}}),
    ({"name": 7}, "name is 7; write a text in quotes", {"name": "7"}),
    ({"spec": {"maxCombo": "many"}}, "write a whole number", {"spec": {"maxCombo": "30"}}),
    ({"parameters": {"dropout": {"type": "float", "min": "0.1, 0.2", "max": 0.3}}}, "give a number", {"parameters": {"dropout": {"type": "float", "min": 0.1, "max": 0.3}}}),
    ({"spec": {"maxCombo": 2.5}}, "write a whole number", {"spec": {"maxCombo": 2}}),
    ({"spec": {"maxCombo": "16,32"}}, "write a whole number", {"spec": {"maxCombo": 16}}),
    ({"spec": {"maxCombo": "1,000"}}, "write 1000", {"spec": {"maxCombo": 1000}}),
    ({"spec": {"maxCombo": "2**4"}}, "write 16", {"spec": {"maxCombo": 16}}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "end", "repaired"), FILES)
def test_answer_shows_the_file_that_works(write_space, changes, end, repaired):
    assert mistake(write_space(**changes)).endswith(end)
    load(write_space(**repaired))


def test_long_text_is_not_repeated_in_the_answer():
    assert remedy(f'rs"{300 * "a"}"') == ""


def test_two_words_for_one_key_are_refused(write_space):
    both = {**LOG, "scaling_type": "uniform"}
    assert "scaling_type is another word for scalingType; keep one" in mistake(
        write_space(parameters={"learning_rate": both})
    )


SAME = [  # ways to write one parameter, which Comet or its client accepts, and its form in Comet's schema
    ("batch_size", {"type": "categorical", "values": [16, 32]}, {"type": "discrete", "values": [16, 32]}),
    ("batch_size", {"type": "categorical", "values": ["16", "32"]}, {"type": "discrete", "values": [16, 32]}),
    ("batch_size", ["16", 32], {"type": "discrete", "values": [16, 32]}),
    ("batch_size", {"type": "discrete", "values": 16}, {"type": "discrete", "values": [16]}),
    ("batch_size", "16", {"type": "discrete", "values": [16]}),
    ("share_body", {"type": "discrete", "values": [True, False]}, {"type": "categorical", "values": ["true", "false"]}),
    ("share_body", [1, 0], {"type": "categorical", "values": ["true", "false"]}),
    ("share_body", True, {"type": "categorical", "values": ["true"]}),
    ("schedule", {"type": "discrete", "values": ["cosine"]}, {"type": "categorical", "values": ["cosine"]}),
    ("schedule", "cosine", {"type": "categorical", "values": ["cosine"]}),
    ("stem_width", {**WHOLE, "min": "8", "max": 64.0}, {**WHOLE, "scalingType": "uniform"}),
    ("learning_rate", {**LOG, "min": "1e-3"}, LOG),
    ("dropout", {"type": "discrete", "values": [0.1], "scalingType": "uniform"}, {"type": "discrete", "values": [0.1]}),
]


@pytest.mark.parametrize(("name", "parameter", "in_schema"), SAME)
def test_comet_gets_its_own_schema(write_space, name, parameter, in_schema):
    assert load(write_space(parameters={name: parameter})).content["parameters"] == {name: in_schema}


def test_keys_that_comets_client_alone_takes_are_left_out(write_space):
    space = load(write_space(name=None, verbose=0, spec={"maxCombo": 3, "seed": None, "metric": "val_loss"}))
    assert space.content.keys() == {"algorithm", "trials", "parameters", "spec"} & space.content.keys()
    assert space.content["spec"] == {"maxCombo": 3, "metric": "val_loss"}
    assert space.name == "optimizer"


WHOLE_FILE = '{{"algorithm": "random", "parameters": {{{}}}, "spec": {{"maxCombo": 3}}}}'
FOREIGN = [  # entries as they were written, the end of the answer, and entries that follow it
    ('"model": {"stem_width": [8, 16]}', "move stem_width into parameters: {}", '"stem_width": [8, 16]'),
    ('"optimiser": {"lr": [0.1]}', "move learning_rate into parameters: {}", '"learning_rate": [0.1]'),
    ('"optimizer": {"name": "adam", "lr": [0.1]}', "move learning_rate into parameters: {}", '"learning_rate": [0.1]'),
    ('"net": {"a": {"ema": [0.9]}}', "net is no parameter; move ema into parameters: {}", '"ema": [0.9]'),
    ('"batch_size": range(8, 64)', "or give {}", '{"type": "integer", "min": 8, "max": 64}'),
    ('"batch_size": np.arange(8)', "or give {}", '{"type": "integer", "min": 1, "max": 8}'),
    ('"batch_size": "8-64"', "or give {}", '{"type": "integer", "min": 8, "max": 64}'),
    ('"batch_size": hp.choice("b", [8, 16])', "write {}", "[8, 16]"),
    ('"learning_rate": tune.loguniform(1e-4, 1e-1)', "or give {}", '{"type": "float", "min": 0.0001, "max": 0.1, "scalingType": "loguniform"}'),
    ('"batch_size": "16,32"', "write {}", "[16, 32]"),
    ('"batch_size": "16, 32,64"', "write {}", "[16, 32, 64]"),
    ('"batch_size": 16,32,64', "write {}", "[16, 32, 64]"),
    ('"learning_rate": "0.1, 0.2"', "write {}", "[0.1, 0.2]"),
    ('"batch_size": "1,024"', "write {}", "1024"),
    ('"learning_rate": 10**-3', "write {}", "0.001"),
    ('"learning_rate": [1/1000]', "write {}", "0.001"),
    ('"learning_rate": "0,001"', "write {}", "0.001"),
    ('"learning_rate": 0,001', "write {}", "0.001"),
    ('"learning_rate": "10%"', "write {}", "0.1"),
    ('"learning_rate": 10%', "write {}", "0.1"),
    ('"batch_size": 2**4', "write {}", "16"),
    ('"batch_size": {"type": "integer", "min": 8, "max": 1 000}', "write {}", "1000"),
    ('"schedule": b\'cosine\'', "write {}", '"cosine"'),
    ('"learning_rate": {"_type": "loguniform", "_value": [0.0001, 0.1]}', "write {}", '{"type": "float", "min": 0.0001, "max": 0.1, "scalingType": "loguniform"}'),
    ('"learning_rate": {"type": "float", "range": [0.1, 0.2]}', "write {}", '{"type": "float", "min": 0.1, "max": 0.2}'),
    ('"learning_rate": {"bounds": [0.1, 0.2]}', "write {}", '{"type": "float", "min": 0.1, "max": 0.2}'),
    ('"batch_size": {"type": "integer", "interval": [8, 16]}', "write {}", '{"type": "integer", "min": 8, "max": 16}'),
    ('"batch_size": {"_type": "choice", "_value": [8, 16]}', "write {}", '{"type": "discrete", "values": [8, 16]}'),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "end", "working"), FOREIGN)
def test_form_of_another_program_leads_to_ours(tmp_path, entry, end, working):
    path = tmp_path / "optimizer.json"
    path.write_text(WHOLE_FILE.format(entry))
    assert mistake(path).endswith(end.format(working))
    repaired = working if "into parameters" in end else f"{entry.partition(':')[0]}: {working}"
    path.write_text(WHOLE_FILE.format(repaired))
    load(path)


def test_spec_that_is_null_leads_to_one_that_works(tmp_path):
    path = tmp_path / "optimizer.json"
    path.write_text('{"algorithm": "random", "parameters": {"ema": [0.9]}, "spec": null}')
    assert mistake(path).endswith('spec is null; write "spec": {"maxCombo": 30}')
    path.write_text(path.read_text().replace("null", '{"maxCombo": 30}'))
    load(path)
