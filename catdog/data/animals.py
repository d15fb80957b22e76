"""Draw the faces of cats and dogs from polygons in head coordinates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2): x to the right, y down; the head's radius is 1
Colour = tuple[int, int, int]
Pen = Callable[[Points, Colour], None]  # fills one polygon

CAT, DOG = 0, 1
SIDES = (-1, 1)
WHITE, BLACK, PINK, ROSE = (255, 255, 255), (22, 18, 22), (236, 150, 160), (214, 84, 104)
# One palette for both animals, so that colour says nothing about the class.
FURS = ((62, 58, 64), (112, 112, 122), (165, 165, 172), (240, 234, 226), (234, 208, 164),
        (226, 146, 66), (190, 142, 92), (132, 86, 54), (92, 62, 48), (140, 152, 172))  # fmt: skip
IRISES = ((186, 200, 70), (120, 180, 90), (232, 180, 60), (110, 170, 210))


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
CAT_EAR = _smooth([(0.12, -0.6), (0.4, -1.16), (0.86, -1.72), (0.99, -1.62), (1.06, -1.0), (1.02, -0.2)])
FLOPPY = _smooth([(0.3, -1.0), (0.86, -1.14), (1.2, -0.6), (1.36, 0.3), (1.1, 0.9), (0.86, 0.6), (0.7, -0.2)])
DROP_EAR = _smooth([(0.22, -0.7), (0.36, -1.34), (0.86, -1.36), (1.0, -0.3)])
DROP_FLAP = _smooth([(0.26, -1.4), (0.9, -1.42), (1.26, -0.9), (1.2, -0.4), (0.7, -0.8)])
CAT_EYE = _smooth([(-0.32, 0.02), (-0.14, -0.22), (0.12, -0.25), (0.36, -0.16), (0.2, 0.16), (-0.08, 0.2)])
CAT_NOSE = _smooth([(0.17, -0.08), (0.06, 0.1)], 1, both=True)
DOG_NOSE = _smooth([(0.34, -0.2), (0.36, 0.04), (0.1, 0.22)], both=True)
TONGUE = _smooth([(0.2, 0), (0.22, 0.4), (0.1, 0.56)], both=True)


def _mix(first: Colour, second: Colour, part: float) -> Colour:
    """Blend two colours: `part` 0 is the first, 1 the second."""
    (r, g, b), (red, green, blue) = first, second
    return round(r + (red - r) * part), round(g + (green - g) * part), round(b + (blue - b) * part)


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


def _eyes(pen: Pen, rng: Generator, look: Appearance, label: int) -> None:
    """Draw a cat's almond eyes with slit pupils, a dog's round dark ones, or sleepy arcs."""
    iris, slit, big = IRISES[rng.integers(len(IRISES))], rng.uniform(0.05, 0.11), rng.uniform(0.9, 1.12)
    apart, y = (0.46, -0.08 + look.nod * 0.5) if label == CAT else (0.37, -0.26 + look.nod * 0.5)
    for side in SIDES:
        x = side * apart + look.turn * 0.5
        if look.sleepy:
            for corner in (x - 0.24, x + 0.24):
                pen(_ribbon((x, y + 0.06), (corner, y - 0.08), 0.1, 0.035), BLACK)
            continue
        if label == CAT:
            _outlined(pen, CAT_EYE * (side * big, big) + (x, y), iris, BLACK, 0.06)
            pen(_oval(x, y, slit, 0.2 * big), BLACK)
        else:
            _outlined(pen, _oval(x, y, 0.19 * big, 0.19 * big), (98, 58, 34), BLACK, 0.05)
            pen(_oval(x, y, 0.12, 0.12), BLACK)
        pen(_oval(x - 0.06, y - 0.08, 0.06, 0.06), WHITE)


def _cat_ears(pen: Pen, rng: Generator, look: Appearance) -> None:
    """Draw two upright pointed ears with pink insides."""
    fur = look.second if rng.random() < 0.25 else look.fur
    root = np.array([0.6, -0.6])
    for side in SIDES:
        ear = (CAT_EAR - root) * rng.uniform((0.9, 0.85), (1.05, 1.15)) + root
        _outlined(pen, ear * (side, 1), fur, look.ink)
        inner = (ear - root) * (0.6, 0.74) + root + (0.06, -0.02)
        pen(inner * (side, 1), _mix(look.fur, PINK, 0.75))


def _dog_ears(pen: Pen, rng: Generator, look: Appearance, drop: bool) -> None:
    """Draw ears that hang at the sides or, if `drop`, stand up and fold over."""
    fur = look.second if rng.random() < 0.4 else _mix(look.fur, BLACK, 0.32)
    root, size = np.array([0.0, -1.0]), rng.uniform((0.9, 0.8), (1.1, 1.2))
    for side in SIDES:
        if drop:
            _outlined(pen, DROP_EAR * (side, 1), look.shade, look.ink)
            _outlined(pen, DROP_FLAP * (side * size[0], 1), fur, look.ink)
        else:
            _outlined(pen, ((FLOPPY - root) * size + root) * (side, 1), fur, look.ink)


def _cat_muzzle(pen: Pen, rng: Generator, look: Appearance) -> None:
    """Draw a short muzzle, a small pink nose and long whiskers."""
    x, y = look.turn * 0.75, 0.34 + look.nod
    for across, down, wide in ((0.0, 0.28, 0.24), (-0.2, 0.1, 0.29), (0.2, 0.1, 0.29)):
        pen(_oval(x + across, y + down, wide, 0.21), look.pale)
    hair = WHITE if sum(look.fur) < 560 else (90, 84, 84)
    for side in SIDES:
        pen(_ribbon((x, y + 0.08), (x + side * 0.34, y + 0.16), 0.07, 0.09), look.ink)
        for rise in (-0.2, 0.06, 0.32):
            end = (x + side * rng.uniform(1.25, 1.5), y + 0.1 + rise + rng.uniform(-0.08, 0.08))
            pen(_ribbon((x + side * 0.3, y + 0.08 + rise * 0.3), end, 0.045, -0.05), hair)
    _outlined(pen, CAT_NOSE * rng.uniform(0.9, 1.1) + (x, y - 0.08), PINK, look.ink, 0.03)


def _dog_muzzle(pen: Pen, rng: Generator, look: Appearance) -> None:
    """Draw a long muzzle that stands out, a big dark nose and sometimes a tongue."""
    x, y, wide = look.turn * 1.3, 0.4 + look.nod * 1.4, rng.uniform(0.48, 0.6)
    edge = _mix(look.pale, look.ink, 0.5)
    if rng.random() < 0.5:
        _outlined(pen, _oval(x, y + 0.42, wide * 0.62, 0.3), look.shade, look.ink)
        pen(TONGUE * (1, rng.uniform(0.8, 1.3)) + (x, y + 0.36), ROSE)
        pen(_ribbon((x, y + 0.4), (x, y + 0.7), 0.04), _mix(ROSE, BLACK, 0.3))
    bridge = np.concatenate([_oval(look.turn * 0.6, -0.1, 0.3, 0.2)[12:], _oval(x, y + 0.1, wide, 0.3)[:13]])
    _outlined(pen, bridge, look.pale, edge)
    for side in SIDES:
        _outlined(pen, _oval(x + side * 0.26, y + 0.2, wide * 0.56, 0.28), look.pale, edge, 0.03)
    pen(_oval(x, y + 0.1, wide * 0.8, 0.24), look.pale)
    pen(_ribbon((x, y + 0.05), (x, y + 0.4), 0.07), BLACK)
    for side in SIDES:
        pen(_ribbon((x, y + 0.36), (x + side * 0.46, y + 0.34), 0.07, 0.08), BLACK)
    _outlined(pen, DOG_NOSE * rng.uniform(0.85, 1.05) + (x, y - 0.06), (44, 36, 40), BLACK, 0.03)
    pen(_oval(x - 0.08, y - 0.15, 0.11, 0.05), (150, 145, 150))


def draw_animal(pen: Pen, rng: Generator, label: int) -> None:
    """Draw one animal from the back to the front."""
    look, drop = _choose_appearance(rng), rng.random() < 0.25
    head = HEADS[label] * rng.uniform(0.94, 1.06, 2)
    if rng.random() < 0.7:
        _body(pen, rng, look)
    if label == CAT:
        _cat_ears(pen, rng, look)
    elif drop:
        _dog_ears(pen, rng, look, drop)
    _outlined(pen, head, look.shade, look.ink)
    pen(head * 0.93 + (-0.03, -0.04), look.fur)
    _markings(pen, rng, look)
    if label == DOG and not drop:
        _dog_ears(pen, rng, look, drop)
    _eyes(pen, rng, look, label)
    (_cat_muzzle if label == CAT else _dog_muzzle)(pen, rng, look)
