import pytest

from catdog.recipe.schedules import learning_rate_factor

NUM = 10_000


@pytest.mark.parametrize(
    ("kind", "expected"),  # in the first step, after 1 %, half and 85 % of the steps, in the last step
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 1, 0.5, 0.055, 0]),
        ("one_cycle", [0.04, 0.078, 0.75, 0.095, 0]),
        ("linear", [0.005, 0.5, 0.51, 0.153, 0]),
        ("wsd", [0.005, 0.5, 1, 0.5, 0]),
    ],
)
def test_schedule_has_its_shape(kind, expected):
    found = [learning_rate_factor(kind, step, NUM) for step in (0, 100, NUM // 2, 85 * NUM // 100, NUM - 1)]
    assert found == pytest.approx(expected, abs=0.005)
    assert all(0 < learning_rate_factor(kind, step, NUM) <= 1 for step in range(NUM))


@pytest.mark.parametrize("kind", ["linear", "wsd"])
def test_short_training_warms_up_for_a_tenth_of_its_steps(kind):
    factors = [learning_rate_factor(kind, step, 40) for step in range(40)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1
    assert learning_rate_factor(kind, 0, 1) == pytest.approx(1 / 1.1)
