"""Captions below pictures: wrapped, and cut where they are too long."""

from __future__ import annotations

from PIL import Image, ImageDraw

from sigrl_deploy.tagging.fonts import Font, drawable

PAPER, INK, FAINT = "white", "#1a1a1a", "#666666"
_MOST_LINES = 2


def caption(text: str, width: int, size: int, beside: str = "") -> Image.Image:
    """`text` in a font of `size` pixels on at most two lines of `width` pixels, with `beside` right of the first."""
    font, text = drawable(text, size)
    other, beside = drawable(beside, size)
    taken = round(other.getlength(beside)) + size if beside else 0
    lines = wrapped(text, font, max(width - taken, size))
    line = line_height(size)
    canvas = Image.new("RGB", (width, len(lines) * line), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, content in enumerate(lines):
        draw.text((0, i * line + line // 2), content, INK, font, anchor="lm")
    if beside:
        draw.text((width, line // 2), beside, FAINT, other, anchor="rm")
    return canvas


def line_height(size: int) -> int:
    """Of text in a font of `size` pixels."""
    return round(1.35 * size)


def wrapped(text: str, font: Font, width: float) -> list[str]:
    """The text in lines that are at most `width` pixels long, cut with an ellipsis where they would be too many."""
    lines: list[str] = []
    while len(lines) < _MOST_LINES - 1 and font.getlength(text) > width:
        fits = max(1, _fitting(text, font, width))
        space = text.rfind(" ", 1, fits + 1)
        cut = space if space > 0 else fits
        lines.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    if font.getlength(text) > width:
        text = text[: _fitting(text, font, width - font.getlength("…"))].rstrip() + "…"
    return [*lines, text]


def _fitting(text: str, font: Font, width: float) -> int:
    """How many letters from the start of the text are at most `width` pixels long."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low
