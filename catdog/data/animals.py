"""Draw the faces of cats and dogs from polygons in head coordinates.

Each part of a face has a number from 0 (a cat's) to 1 (a dog's). Its outline lies that far between the two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2): x to the right, y down; the head's radius is 1
Colour = tuple[int, int, int]
Pen = Callable[[Points, Colour], None]  # fills one polygon
Shape = TypeVar("Shape", float, Points)

CAT, DOG = 0, 1
SIDES = (-1, 1)
WHITE, BLACK, PINK, ROSE = (255, 255, 255), (22, 18, 22), (236, 150, 160), (214, 84, 104)
BROWN, COAL, GLOSS = (98, 58, 34), (44, 36, 40), (150, 145, 150)
# One palette for both animals, so that colour says nothing about the class.
FURS = ((62, 58, 64), (112, 112, 122), (165, 165, 172), (240, 234, 226), (234, 208, 164),
        (226, 146, 66), (190, 142, 92), (132, 86, 54), (92, 62, 48), (140, 152, 172))  # fmt: skip
IRISES = ((186, 200, 70), (120, 180, 90), (232, 180, 60), (110, 170, 210))


@dataclass(frozen=True)
class Traits:
    """How far each part of the face is a dog's: 0 is a cat's, 1 a dog's."""

    head: float
    ears: float
    eyes: float
    muzzle: float


@dataclass(frozen=True)
class Appearance:
    """Colours and pose of one animal. `turn` and `nod` shift the protruding parts of the face, in head radii."""

    fur: Colour
    second: Colour
    ink: Colour
    shade: Colour
    pale: Colour
    turn: float
    nod: float
    sleepy: bool


def _smooth(corners: list[tuple[float, float]], rounds: int = 2, both: bool = False) -> Points:
    """Round a closed outline by cutting corners; `both` first adds the half mirrored at x = 0."""
    points = np.array(corners)
    if both:
        points = np.concatenate([points, points[::-1] * (-1, 1)])
    for _ in range(rounds):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
ALONG = np.concatenate([np.linspace(0, 1, 6), np.linspace(1, 0, 6)])  # there and back
STROKE = np.stack([ALONG, (1 - 0.8 * ALONG) * np.repeat([1, -1], 6), 4 * ALONG * (1 - ALONG)], axis=1)
CAT_HEAD = [(0.2, -0.96), (0.6, -0.86), (0.94, -0.5), (1.04, 0.1), (1.22, 0.58), (0.74, 0.82), (0.3, 1.0)]
DOG_HEAD = [(0.2, -1.14), (0.56, -1.02), (0.84, -0.66), (0.9, -0.2), (0.76, 0.3), (0.7, 0.8), (0.36, 1.1)]
HEADS = (_smooth(CAT_HEAD, both=True), _smooth(DOG_HEAD, both=True))
BODY = _smooth([(0.5, 0.4), (0.8, 0.9), (1.25, 1.6), (1.6, 6.0)], both=True)
CHEST = _smooth([(0.4, 0.7), (0.6, 1.2), (0.3, 2.2)], both=True)
BLAZE = _smooth([(0.06, -1.0), (0.14, -0.5), (0.3, 0.2), (0.4, 0.7)], both=True)
CAT_EAR = [(0.12, -0.6), (0.4, -1.16), (0.86, -1.72), (0.99, -1.62), (1.06, -1.0), (1.02, -0.2), (0.57, -0.4)]
FLOPPY = [(0.7, -0.2), (0.3, -1.0), (0.86, -1.14), (1.2, -0.6), (1.36, 0.3), (1.1, 0.9), (0.86, 0.6)]
DROP_EAR = [(0.22, -0.7), (0.36, -1.34), (0.66, -1.35), (0.86, -1.36), (0.94, -0.8), (1.0, -0.3), (0.6, -0.5)]
EARS = (_smooth(CAT_EAR), _smooth(FLOPPY), _smooth(DROP_EAR))
DROP_FLAP = _smooth([(0.26, -1.4), (0.9, -1.42), (1.26, -0.9), (1.2, -0.4), (0.7, -0.8)])
CAT_EYE = _smooth([(-0.32, 0.02), (-0.14, -0.22), (0.12, -0.25), (0.36, -0.16), (0.2, 0.16), (-0.08, 0.2)])
EYES = (CAT_EYE, CIRCLE * -0.19)  # both begin on the left
CAT_NOSE, DOG_NOSE = [(0.17, -0.1), (0.14, -0.02), (0.04, 0.12)], [(0.34, -0.2), (0.36, 0.04), (0.1, 0.22)]
NOSES = (_smooth(CAT_NOSE, both=True), _smooth(DOG_NOSE, both=True))
TONGUE = _smooth([(0.2, 0), (0.22, 0.4), (0.1, 0.56)], both=True)


def _mix(first: Colour, second: Colour, part: float) -> Colour:
    """Blend two colours: `part` 0 is the first, 1 the second."""
    (r, g, b), (red, green, blue) = first, second
    return round(r + (red - r) * part), round(g + (green - g) * part), round(b + (blue - b) * part)


def _between(cat: Shape, dog: Shape, part: float) -> Shape:
    """Return the number or the outline that lies `part` of the way from `cat` to `dog`."""
    return cat + (dog - cat) * part


def _oval(x: float, y: float, wide: float, high: float) -> Points:
    """Return an upright ellipse from its centre and half axes."""
    return CIRCLE * (wide, high) + (x, y)


def _ribbon(start: tuple[float, float], end: tuple[float, float], width: float, sag: float = 0.0) -> Points:
    """Return a tapered stroke that bends by `sag` downwards in its middle."""
    across, down = end[0] - start[0], end[1] - start[1]
    thick = width / 2 / math.hypot(across, down)
    return STROKE @ ((across, down), (-down * thick, across * thick), (0, sag)) + start


def _outlined(pen: Pen, points: Points, fill: Colour, ink: Colour, width: float = 0.045) -> None:
    """Fill a shape over one that is `width` larger on each side, in the outline's colour."""
    low, high = points.min(axis=0), points.max(axis=0)
    pen(points + (points - (low + high) / 2) * (2 * width / (high - low)), ink)
    pen(points, fill)


def _choose_traits(rng: Generator, label: int) -> Traits:
    """Let each part go up to `reach` of the way to the other class: over a half for 6 % of the animals."""
    reach = rng.random() ** 12
    return Traits(*np.abs(label - reach * rng.random(4)).tolist())


def _choose_appearance(rng: Generator) -> Appearance:
    coats = np.array(FURS)[rng.integers(0, len(FURS), 2)] + rng.normal(0, 10, (2, 3))
    fur, second = map(tuple, np.clip(coats, 20, 250).astype(int).tolist())
    ink, shade, pale = _mix(fur, BLACK, 0.68), _mix(fur, BLACK, 0.2), _mix(fur, (255, 250, 240), 0.62)
    turn, nod = rng.uniform(-0.28, 0.28), rng.uniform(-0.1, 0.12)
    return Appearance(fur, second, ink, shade, pale, turn, nod, sleepy=rng.random() < 0.08)


def choose_colour(rng: Generator) -> Colour:
    """Choose a soft colour for collars and backgrounds."""
    grey, r, g, b = rng.random(4).tolist()
    base = 20 + 100 * grey
    return int(base + 115 * r), int(base + 115 * g), int(base + 115 * b)


def _body(pen: Pen, rng: Generator, look: Appearance) -> None:
    """Draw neck and shoulders, and sometimes a chest patch and a collar with its bell."""
    broad = (rng.uniform(0.7, 1.05), 1)
    _outlined(pen, BODY * broad, look.shade, look.ink)
    if rng.random() < 0.6:
        pen(CHEST * broad, look.pale)
    if rng.random() < 0.35:
        colour = choose_colour(rng)
        pen(_oval(0, 0.98, 0.78, 0.3), _mix(colour, BLACK, 0.35))
        pen(_oval(0, 0.93, 0.76, 0.28), colour)
        _outlined(pen, _oval(0, 1.28, 0.13, 0.13), (240, 200, 80), look.ink, 0.03)


def _markings(pen: Pen, rng: Generator, look: Appearance) -> None:
    """Draw blaze, patch and stripes, each sometimes; all stay inside either head."""
    if rng.random() < 0.35:
        pen(BLAZE * (rng.uniform(0.6, 1.2), 0.9) + (look.turn * 0.3, 0), look.pale)
    if rng.random() < 0.35:
        pen(_oval(SIDES[rng.integers(2)] * 0.42, -0.18, 0.36, rng.uniform(0.32, 0.48)), look.second)
    if rng.random() < 0.4:
        for x in (-0.3, 0.0, 0.3):
            pen(_ribbon((x, -0.8), (x * 0.6, rng.uniform(-0.55, -0.3)), 0.16), look.ink)
        for side in SIDES:
            for y in (0.1, 0.36):
                pen(_ribbon((side * 0.76, y), (side * 0.46, y + 0.06), 0.13), look.ink)


def _eyes(pen: Pen, rng: Generator, look: Appearance, dog: float) -> None:
    """Draw a cat's almond eyes with slit pupils, a dog's round dark ones, or sleepy arcs."""
    iris, slit, big = IRISES[rng.integers(len(IRISES))], rng.uniform(0.05, 0.11), rng.uniform(0.9, 1.12)
    apart, y = _between(0.46, 0.37, dog), _between(-0.08, -0.26, dog) + look.nod * 0.5
    lid = _between(*EYES, dog) * big
    wide, high = _between(slit, 0.12, dog), _between(0.2 * big, 0.12, dog)
    for side in SIDES:
        x = side * apart + look.turn * 0.5
        if look.sleepy:
            for corner in (x - 0.24, x + 0.24):
                pen(_ribbon((x, y + 0.06), (corner, y - 0.08), 0.1, 0.035), BLACK)
            continue
        _outlined(pen, lid * (side, 1) + (x, y), _mix(iris, BROWN, dog), BLACK, 0.055)
        pen(_oval(x, y, wide, high), BLACK)
        pen(_oval(x - 0.06, y - 0.08, 0.06, 0.06), WHITE)


def _ears(pen: Pen, rng: Generator, look: Appearance, dog: float, drop: bool) -> None:
    """Draw a cat's pointed ears with pink insides, or a dog's, which hang or, if `drop`, stand up and fold over."""
    fur = look.second if rng.random() < 0.3 else _mix(look.fur, BLACK, 0.32 * dog)
    root = _between(np.array([0.6, -0.6]), np.array([0.0, -1.0]), dog)
    size = rng.uniform((0.9, 0.82), (1.08, 1.17))
    ear = (_between(EARS[CAT], EARS[DOG + drop], dog) - root) * size
    for side in SIDES:
        _outlined(pen, (ear + root) * (side, 1), look.shade if drop else fur, look.ink)
        if dog < 0.5:
            pen((ear * (0.6, 0.74) + root + (0.06, -0.02)) * (side, 1), _mix(look.fur, PINK, 0.75 * (1 - dog)))
        elif drop:
            _outlined(pen, ((DROP_FLAP - root) * size + root) * (side, 1), fur, look.ink)


def _muzzle(pen: Pen, rng: Generator, look: Appearance, dog: float) -> None:
    """Draw a cat's short muzzle with a small pink nose, or a dog's, which stands out, with a big dark one."""
    x, y = look.turn * _between(0.75, 1.3, dog), _between(0.34, 0.4, dog) + look.nod * _between(1.0, 1.4, dog)
    wide, edge = rng.uniform(0.48, 0.6), _mix(look.pale, look.ink, 0.5 * dog)
    if rng.random() < 0.5 * dog:
        _tongue(pen, rng, look, x, y, wide)
    if dog > 0.25:
        top = _oval(look.turn * 0.6, _between(0.4, -0.1, dog), 0.3 * dog, 0.2 * dog)
        _outlined(pen, np.concatenate([top[12:], _oval(x, y + 0.1, wide * dog, 0.3)[:13]]), look.pale, edge)
    for side in SIDES:
        cheek = _oval(x + side * _between(0.2, 0.26, dog), y + _between(0.1, 0.2, dog), wide * 0.55, 0.21 + 0.07 * dog)
        _outlined(pen, cheek, look.pale, edge, 0.03 * dog)
    pen(_oval(x, y + _between(0.28, 0.1, dog), _between(0.24, wide * 0.8, dog), _between(0.21, 0.24, dog)), look.pale)
    line, mouth = _mix(look.ink, BLACK, dog), y + _between(0.08, 0.36, dog)
    pen(_ribbon((x, y), (x, mouth + 0.04), 0.07), line)
    for side in SIDES:
        corner = (x + side * _between(0.34, 0.46, dog), y + _between(0.16, 0.34, dog))
        pen(_ribbon((x, mouth), corner, 0.07, 0.085), line)
    if rng.random() > dog:
        _whiskers(pen, rng, look, x, y)
    nose = _between(*NOSES, dog) * rng.uniform(0.87, 1.07) + (x, y - 0.07)
    _outlined(pen, nose, _mix(PINK, COAL, dog), _mix(look.ink, BLACK, dog), 0.03)
    if dog > 0.5:
        pen(_oval(x - 0.08, y - 0.15, 0.11, 0.05), GLOSS)


def _tongue(pen: Pen, rng: Generator, look: Appearance, x: float, y: float, wide: float) -> None:
    """Draw an open mouth with its tongue."""
    _outlined(pen, _oval(x, y + 0.42, wide * 0.62, 0.3), look.shade, look.ink)
    pen(TONGUE * (1, rng.uniform(0.8, 1.3)) + (x, y + 0.36), ROSE)
    pen(_ribbon((x, y + 0.4), (x, y + 0.7), 0.04), _mix(ROSE, BLACK, 0.3))


def _whiskers(pen: Pen, rng: Generator, look: Appearance, x: float, y: float) -> None:
    hair = WHITE if sum(look.fur) < 560 else (90, 84, 84)
    for side in SIDES:
        for rise in (-0.2, 0.06, 0.32):
            end = (x + side * rng.uniform(1.25, 1.5), y + 0.1 + rise + rng.uniform(-0.08, 0.08))
            pen(_ribbon((x + side * 0.3, y + 0.08 + rise * 0.3), end, 0.045, -0.05), hair)


def draw_animal(pen: Pen, rng: Generator, label: int) -> None:
    """Draw one animal from the back to the front."""
    traits, look, drop = _choose_traits(rng, label), _choose_appearance(rng), rng.random() < 0.25
    head = _between(*HEADS, traits.head) * rng.uniform(0.94, 1.06, 2)
    ears_behind = drop or traits.ears < 0.5
    if rng.random() < 0.7:
        _body(pen, rng, look)
    if ears_behind:
        _ears(pen, rng, look, traits.ears, drop)
    _outlined(pen, head, look.shade, look.ink)
    pen(head * 0.93 + (-0.03, -0.04), look.fur)
    _markings(pen, rng, look)
    if not ears_behind:
        _ears(pen, rng, look, traits.ears, drop)
    _eyes(pen, rng, look, traits.eyes)
    _muzzle(pen, rng, look, traits.muzzle)
