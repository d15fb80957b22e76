import torch

from catdog.model import ModelConfig, build_model
from catdog.recipe.average import MovingAverage

SHAPE = ModelConfig(stem_width=2, body_width=4, body_repeats=1, image_size=8)


def test_average_follows_weights_and_statistics_faster_at_first():
    average, trained = build_model(SHAPE, 1), build_model(SHAPE, 2)
    moving, expected = MovingAverage(average, trained, 0.5), average.stem[0].weight.detach().clone()
    for step, decay in ((0, 0.1), (1, 2 / 11), (100, 0.5)):
        with torch.no_grad():
            trained.stem[0].weight += 1
            trained.stem[2].running_mean += 1
        expected = decay * expected + (1 - decay) * trained.stem[0].weight
        moving.update(step)
        torch.testing.assert_close(average.stem[0].weight, expected)
    assert 1 < average.stem[2].running_mean[0] < 3
    assert average.stem[2].num_batches_tracked == 0
