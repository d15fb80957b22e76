"""Draw images of cats and dogs: an endless labelled data set that needs no download."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from catdog.data.animals import CAT, CIRCLE, DOG, SIDES, Colour, Pen, Points, choose_colour, draw_animal

MIN_SIZE = 32  # pixels; smaller faces are not recognisable
SUPERSAMPLING = 2  # drawn this much larger, then reduced, for smooth edges


def draw(label: int, size: int, seed: int | SeedSequence) -> Image.Image:
    """Draw one RGB image of `size` x `size` pixels, 32 or more: a cat for label 0, a dog for label 1.

    A seed gives the same animal at every size. Only the noise differs. Some animals are small, partly covered or
    partly of the other class, so no classifier gets all of them right.
    """
    if label not in (CAT, DOG) or size < MIN_SIZE:
        raise ValueError(f"label must be 0 or 1 and size at least {MIN_SIZE}, not {label} and {size}")
    rng, side = np.random.default_rng(seed), size * SUPERSAMPLING
    image = _backdrop(rng, side)
    canvas = ImageDraw.Draw(image)
    _clutter(canvas, rng, side)
    pen = partial(_fill, canvas, *_pose(rng, side))
    draw_animal(pen, rng, label)
    if rng.random() < 0.3:
        _occlude(pen, rng)
    return _add_grain(image.reduce(SUPERSAMPLING), rng)


def synthetic(
    count: int, size: int, seed: int, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw `count` images (count, size, size, 3) and their labels (count,). Each pair is a cat and a dog.

    A longer set starts with the images of a shorter one. `progress` wraps the loop, to show a progress bar.
    """
    dog_first = np.random.default_rng(seed).random((count + 1) // 2) < 0.5
    labels = np.stack([dog_first, ~dog_first], axis=1).astype(np.uint8).ravel()[:count]
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for index in progress(range(count)):
        images[index] = np.asarray(draw(int(labels[index]), size, SeedSequence(seed, spawn_key=(index,))))
    return images, labels


def _rotation(angle: float) -> Points:
    """Return the 2x2 map that turns row vectors by `angle` radians."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _fill(canvas: ImageDraw.ImageDraw, matrix: Points, centre: Points, points: Points, colour: Colour) -> None:
    """Fill a polygon, placed on the canvas by an affine map of its head coordinates."""
    canvas.polygon((points @ matrix + centre).ravel().tolist(), fill=colour)


def _pose(rng: Generator, side: int) -> tuple[Points, Points]:
    """Choose the pose of the head on a canvas of `side` pixels: its 2x2 map and its centre."""
    extent = rng.uniform(0.4, 0.95)
    turn, shear = np.deg2rad(rng.uniform(-25, 25)), rng.uniform(-0.15, 0.15)
    stretch = np.diag(rng.uniform(0.88, 1.14, 2) * (SIDES[rng.integers(2)], 1))
    matrix = stretch @ np.array([[1, 0], [shear, 1]]) @ _rotation(turn) * (side * extent / 2.6)
    room = max(0.06, 0.56 - 0.5 * extent)
    return matrix, side * (0.5 + rng.uniform(-room, room, 2) + (0, 0.05 * extent))


def _backdrop(rng: Generator, side: int) -> Image.Image:
    """Return a flat, graded or cloudy background."""
    cells = int(rng.integers(1, 4))
    colours = np.array([choose_colour(rng) for _ in range(cells**2)], dtype=np.uint8).reshape(cells, cells, 3)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)


def _clutter(canvas: ImageDraw.ImageDraw, rng: Generator, side: int) -> None:
    """Draw stripes or random shapes, among them triangles and ovals that resemble ears and heads."""
    if rng.random() < 0.25:
        colour, width, slope = choose_colour(rng), rng.uniform(0.03, 0.12) * side, rng.uniform(-1, 1) * side
        for x in np.arange(-side, 2 * side, 2 * width).tolist():
            canvas.polygon([x, 0, x + width, 0, x + width + slope, side, x + slope, side], fill=colour)
    for kind in rng.integers(0, 3, rng.integers(0, 9)):
        corners = CIRCLE if kind == 0 else rng.uniform(-1, 1, (kind + 2, 2))
        shape = corners @ rng.uniform(-0.25, 0.25, (2, 2)) + rng.uniform(0, 1, 2)
        canvas.polygon((shape * side).ravel().tolist(), fill=choose_colour(rng))


def _occlude(pen: Pen, rng: Generator) -> None:
    """Cover a part of the head with a bar or an oval."""
    shape = CIRCLE if rng.random() < 0.5 else np.array([[-6, -0.5], [6, -0.5], [6, 0.5], [-6, 0.5]])
    around, turn = _rotation(rng.uniform(0, 2 * np.pi)), _rotation(rng.uniform(0, np.pi))
    pen(shape @ turn * rng.uniform(0.25, 0.45) + around[0] * rng.uniform(0.4, 1.2), choose_colour(rng))


def _add_grain(image: Image.Image, rng: Generator) -> Image.Image:
    """Add blur, uneven light and pixel noise."""
    size, lamps = image.width, rng.uniform(0.6, 1.25, (2, 2)).astype(np.float32)
    light = np.asarray(Image.fromarray(lamps).resize((size, size), Image.Resampling.BILINEAR))
    blur, noise = rng.uniform(0, 0.015) * size, np.float32(rng.uniform(0, 16))
    if rng.random() < 0.45:
        image = image.filter(ImageFilter.BoxBlur(blur))
    pixels = rng.standard_normal((size, size, 3), dtype=np.float32) * noise
    pixels += np.asarray(image) * np.repeat(light[..., None], 3, axis=2)
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))
