"""Draws a scene: shapes of several colours, textures and sizes on a cluttered background."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 96  # pixels, width and height
_OVERSAMPLING = 3
HUES = {"red": 0, "orange": 28, "yellow": 55, "green": 120, "cyan": 180, "blue": 225, "purple": 275, "pink": 322}  # degrees
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
TEXTURES = ("striped", "dotted", "checkered")
RADII = {"small": (8.5, 10.5), "": (12.5, 15.0), "large": (18.0, 22.0)}  # pixels; the medium size has no name
_HUE_JITTER = 6
_REACH = 1.3  # radii from the centre of a thing to its farthest corner

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Thing:
    """One object of a scene. `texture` and `size` are "" where they are plain; x, y and radius are in pixels."""

    colour: str
    shape: str
    texture: str
    size: str
    x: float
    y: float
    radius: float


def draw_scene(things: Sequence[Thing], rng: np.random.Generator) -> Image.Image:
    """An RGB picture of SIZE x SIZE pixels with the things, later ones in front, on clutter drawn from `rng`."""
    canvas = _background(rng)
    for thing in things:
        _draw_thing(canvas, thing, rng)
    noise = rng.standard_normal((SIZE, SIZE, 1), np.float32) * np.float32(rng.uniform(2, 7))
    pixels = np.asarray(canvas, np.float32) * np.float32(rng.uniform(0.8, 1.1)) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _background(rng: np.random.Generator) -> Image.Image:
    cells = int(rng.integers(2, 9))
    coarse = (rng.uniform(60, 190, 3) + rng.normal(0, 26, (cells, cells, 3))).clip(0, 255).astype(np.uint8)
    canvas = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    # Strokes and specks have the objects' colours, so that neither a colour nor an edge alone tells what is in a scene.
    for _ in range(int(rng.integers(4, 13))):
        points = rng.uniform(0, SIZE, 2) + np.cumsum(rng.normal(0, SIZE / 9, (4, 2)), axis=0)
        draw.line(points.ravel().tolist(), fill=_rgb(rng.uniform(0, 360), rng), width=int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(2, 9))):
        x, y, width, height = (*rng.uniform(0, SIZE, 2), *rng.uniform(1, 4, 2))
        draw.rectangle([x, y, x + width, y + height], fill=_rgb(rng.uniform(0, 360), rng))
    return canvas.filter(ImageFilter.BoxBlur(float(rng.uniform(0, 0.8))))


def _rgb(hue: float, rng: np.random.Generator) -> tuple[int, int, int]:
    rgb = colorsys.hsv_to_rgb(hue % 360 / 360, rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0))
    return int(rgb[0] * 255), int(rgb[1] * 255), int(rgb[2] * 255)


def _draw_thing(canvas: Image.Image, thing: Thing, rng: np.random.Generator) -> None:
    colour = _rgb(HUES[thing.colour] + rng.uniform(-_HUE_JITTER, _HUE_JITTER), rng)
    turn, slant, dark = rng.uniform(-0.4, 0.4), rng.uniform(0, np.pi), rng.uniform() < 0.5
    # Drawn larger and scaled down for smooth edges, with a whole number of pixels on each side of the centre.
    reach = math.ceil(_REACH * thing.radius)
    side, scale = 2 * reach * _OVERSAMPLING, thing.radius * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for points, fill in _outline(thing.shape):
        draw.polygon((points @ _rotation(turn) * scale + side / 2).ravel().tolist(), fill=fill)
    surface = Image.new("RGB", (side, side), colour)
    if thing.texture:
        second = tuple(c // 4 if dark else 255 - (255 - c) // 4 for c in colour)
        surface.paste(second, mask=Image.fromarray(_pattern(thing.texture, slant, side / 2 / scale, side)))
    corner = (round(thing.x) - reach, round(thing.y) - reach)
    canvas.paste(surface.reduce(_OVERSAMPLING), corner, mask.reduce(_OVERSAMPLING))


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _pattern(texture: str, angle: float, reach: float, pixels: int) -> NDArray[np.uint8]:
    """A mask [pixels, pixels] over ±reach radii around a thing: 255 where its texture has the second tone, else 0."""
    axis = np.linspace(-reach, reach, pixels, dtype=np.float32) * 2.2  # periods
    x, y = axis[None, :], axis[:, None]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if texture == "striped":
        second = (u % 1) < 0.5
    elif texture == "checkered":
        second = (np.floor(u * 1.2) + np.floor(v * 1.2)) % 2 == 0
    else:
        second = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
    return second.astype(np.uint8) * np.uint8(255)


def _arc(radius: float = 1.0, x: float = 0.0, count: int = 40) -> Points:
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + radius * np.cos(t), radius * np.sin(t)], axis=1)


@cache
def _outline(shape: str) -> list[tuple[Points, int]]:
    """The polygons of a shape of radius 1 around its centre, each filled with 255, or with 0 to cut a hole."""
    if shape == "circle":
        return [(_arc(), 255)]
    if shape == "ring":
        return [(_arc(), 255), (_arc(0.52), 0)]
    if shape == "moon":
        return [(_arc(), 255), (_arc(0.85, 0.55), 0)]
    if shape == "square":
        return [(_arc(1.15, count=4) @ np.array([[1, 1], [-1, 1]]) / 2**0.5, 255)]
    if shape == "triangle":
        return [(_arc(1.2, count=3) @ np.array([[0.0, -1.0], [1.0, 0.0]]), 255)]
    if shape == "star":
        points = _arc(1.25, count=10) @ np.array([[0.0, -1.0], [1.0, 0.0]])
        points[1::2] *= 0.42
        return [(points, 255)]
    if shape == "cross":
        bar = np.array([[-1.1, -0.36], [1.1, -0.36], [1.1, 0.36], [-1.1, 0.36]])
        return [(bar, 255), (bar[:, ::-1], 255)]
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)  # heart
    points = np.stack([16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], axis=1)
    return [(points / 15, 255)]
