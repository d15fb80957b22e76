import torch

from catdog.data.preprocess import normalize, preprocessing


def test_preprocessing_names_every_step():
    assert set(preprocessing(64)) == {"image_size", "resize", "color", "mean", "std"}


def test_normalized_images_are_channels_last_floats(subset):
    x = normalize(subset.images[:4])
    assert (x.shape, x.dtype) == ((4, 3, 32, 32), torch.float32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert normalize(torch.zeros(1, 2, 2, 3, dtype=torch.uint8)).unique().item() == -2
