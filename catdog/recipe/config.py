"""The configuration of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from catdog.kernels.precision import Precision
from catdog.model import ModelConfig
from catdog.recipe.augmentation import Augmentation
from catdog.recipe.optimizers import Optimizer
from catdog.recipe.schedules import Schedule

SIZE_STEPS = [(0.35, 0.0), (0.7, 0.5), (1.0, 1.0)]  # until which share of the epochs the size has grown how far


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
    cutmix: float = 0.0  # probability that an image gets a rectangle of another image and a share of its label
    erasing: float = 0.0  # probability that an image loses a rectangle
    label_smoothing: float = 0.0  # 0 <= s < 1
    ema: float = 0.0  # decay per step of the moving average of the weights that is evaluated and kept; 0: the weights
    start_size: int = 0  # pixels: image size of the first epochs, which grows to image_size; 0: image_size throughout
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
    "start_size": (lambda value: value >= 0, "not be negative"),
    "cutmix": (lambda value: 0 <= value <= 1, "be 0 to 1"),
    "erasing": (lambda value: 0 <= value <= 1, "be 0 to 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "be at least 0 and below 1"),
    "ema": (lambda value: 0 <= value < 1, "be at least 0 and below 1"),
}
CHOICES = {"optimizer": Optimizer, "schedule": Schedule, "augmentation": Augmentation, "precision": Precision}


def require_sizes(shape: ModelConfig, recipe: TrainConfig) -> None:
    """Raise ValueError for a start_size that the network cannot use."""
    start, end, least = recipe.start_size or shape.image_size, shape.image_size, 2**shape.num_poolings
    if start != end and not shape.global_pool:
        raise ValueError(f"start_size is {start}; only a network with global_pool takes images of several sizes")
    if not least <= start <= end:
        raise ValueError(f"start_size is {start}; it must be {least} to {end} pixels, the image_size, or 0")


def image_size_of(epoch: int, shape: ModelConfig, recipe: TrainConfig) -> int:
    """Return the image size, in pixels, of an epoch, counted from 1."""
    start, end = recipe.start_size or shape.image_size, shape.image_size
    grown = next(share for until, share in SIZE_STEPS if epoch <= until * recipe.epochs + 1e-9)
    return end if grown == 1 else start + int((end - start) * grown) // 8 * 8
