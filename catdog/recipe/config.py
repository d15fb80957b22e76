"""The configuration of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from catdog.kernels.precision import Precision
from catdog.model import ModelConfig
from catdog.recipe.augmentation import Augmentation
from catdog.recipe.optimizers import Optimizer
from catdog.recipe.schedules import Schedule

SIZE_STEPS = [(0.35, 0.0), (0.7, 0.5), (1.0, 1.0)]  # (share of the epochs, share of the growth until then)


@dataclass(frozen=True)
class TrainConfig:
    """The hyperparameters of training. The defaults are those of the baseline."""

    learning_rate: float = 1e-4  # the schedule's peak
    batch_size: int = 32  # images
    epochs: int = 20
    weight_decay: float = 0.0
    optimizer: Optimizer = "adam"  # sgd: Nesterov momentum 0.9; muon: AdamW for all but the convolutions
    schedule: Schedule = "constant"
    augmentation: Augmentation = "none"  # cumulative: flip, then zoom and shift, then light; strong: see `augment`
    erasing: float = 0.0  # probability that a square of an image becomes gray
    label_smoothing: float = 0.0  # 0 <= s < 1
    ema: float = 0.0  # decay per step of the moving average of the weights that is evaluated and kept; 0: the weights
    start_scale: float = 1.0  # image size of the first epochs as a share of image_size, to which it grows; 0 < s <= 1
    precision: Precision = "auto"  # auto: bfloat16 if the device supports it well, else float32
    seed: int = 0  # of weights, order of images, augmentation and dropout

    def __post_init__(self) -> None:
        for name, (is_valid, needed) in RANGES.items():
            if not is_valid(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it must {needed}")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}")


RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "batch_size": (lambda value: value >= 1, "be at least 1"),
    "epochs": (lambda value: value >= 1, "be at least 1"),
    "learning_rate": (lambda value: value > 0, "be above 0"),
    "weight_decay": (lambda value: value >= 0, "not be negative"),
    "start_scale": (lambda value: 0 < value <= 1, "be above 0 and at most 1"),
    "erasing": (lambda value: 0 <= value <= 1, "be 0 to 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "be at least 0 and below 1"),
    "ema": (lambda value: 0 <= value < 1, "be at least 0 and below 1"),
}
CHOICES = {"optimizer": Optimizer, "schedule": Schedule, "augmentation": Augmentation, "precision": Precision}


def require_suited(shape: ModelConfig, recipe: TrainConfig) -> None:
    """Raise ValueError for a recipe that the network cannot be trained with."""
    if recipe.start_scale < 1 and not shape.global_pool:
        reason = "only a network with global_pool takes images of several sizes"
        raise ValueError(f"start_scale is {recipe.start_scale}; {reason}")
    if shape.residual_blocks and recipe.batch_size == 1:
        least = 2 * 2**shape.num_poolings
        if image_size_of(1, shape, recipe) < least:
            reason = f"the last residual block needs more than one image, or images of at least {least} pixels"
            raise ValueError(f"batch_size is 1; {reason}")


def image_size_of(epoch: int, shape: ModelConfig, recipe: TrainConfig) -> int:
    """Return the image size, in pixels, of an epoch, counted from 1.

    Before the last 30 % of the epochs it is a multiple of 8, between what the poolings need and image_size.
    """
    grown = next(share for until, share in SIZE_STEPS if epoch <= until * recipe.epochs + 1e-9)
    if grown == 1 or recipe.start_scale == 1:
        return shape.image_size
    scale = recipe.start_scale + (1 - recipe.start_scale) * grown
    return min(shape.image_size, max(round(shape.image_size * scale / 8) * 8, int(2**shape.num_poolings)))
