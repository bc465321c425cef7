"""Draws screenshots around given pictures: phone and desktop, light and dark; where the picture lies is known.

Every interface is our own drawing: bars, text, bubbles and icons as such programs have them, of nobody's product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from inference.regions import Box
from utils.contracts import RgbArray

Colour: TypeAlias = tuple[int, int, int]

PHONES = ((1080, 2340), (750, 1334), (1170, 2532), (720, 1600))
DESKTOPS = ((1920, 1080), (1366, 768), (2560, 1440), (1440, 900))
_WORDS = ("a", "light", "over", "the", "old", "harbour", "was", "seen", "by", "many", "who", "came", "for", "market")


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of an interface."""

    ground: Colour
    bar: Colour
    ink: Colour
    faint: Colour
    accent: Colour


LIGHT = (
    Theme((255, 255, 255), (246, 246, 248), (20, 22, 26), (120, 124, 130), (24, 110, 220)),
    Theme((250, 249, 245), (255, 255, 255), (35, 31, 32), (140, 134, 128), (190, 70, 40)),
)
DARK = (
    Theme((0, 0, 0), (18, 18, 20), (236, 236, 238), (140, 140, 146), (90, 160, 255)),
    Theme((24, 26, 32), (34, 37, 45), (222, 226, 232), (130, 136, 148), (110, 200, 150)),
)


@dataclass(frozen=True, slots=True)
class Screenshot:
    """A drawn screen, where its picture lies, and of what sort it is."""

    rgb: RgbArray
    box: Box
    sort: str  # such as "phone, dark, chat"


def draw(picture: RgbArray, rng: np.random.Generator, *, phone: bool, dark: bool) -> Screenshot:
    """One screen around a picture (H x W x 3); the same generator state draws the same."""
    theme = (DARK if dark else LIGHT)[int(rng.integers(2))]
    size = (PHONES if phone else DESKTOPS)[int(rng.integers(4))]
    layouts: dict[str, Callable[[_Canvas, RgbArray, np.random.Generator], Box]] = (
        {"feed": _feed, "chat": _chat, "viewer": _viewer}
        if phone
        else {"page": _page, "window": _window, "slide": _slide}
    )
    name = str(rng.choice(list(layouts)))
    canvas = _Canvas(size, theme)
    box = layouts[name](canvas, picture, rng)
    rgb = np.asarray(canvas.image)
    return Screenshot(rgb, box, f"{'phone' if phone else 'desktop'}, {'dark' if dark else 'light'}, {name}")


def encode(rgb: RgbArray, rng: np.random.Generator) -> bytes:
    """As screens are saved and sent on: PNG, or JPEG of quality 70 to 92."""
    out = BytesIO()
    if rng.random() < 0.5:
        Image.fromarray(rgb).save(out, "PNG")
    else:
        Image.fromarray(rgb).save(out, "JPEG", quality=int(rng.integers(70, 93)))
    return out.getvalue()


class _Canvas:
    """A screen to draw on; lengths are in units of a hundredth of its shorter side."""

    def __init__(self, size: tuple[int, int], theme: Theme) -> None:
        self.image = Image.new("RGB", size, theme.ground)
        self.pen = ImageDraw.Draw(self.image)
        self.theme = theme
        self.width, self.height = size
        self.unit = min(size) / 100

    def bar(self, top: float, height: float) -> None:
        self.pen.rectangle((0, top, self.width, top + height), fill=self.theme.bar)

    def text(self, x: float, y: float, words: str, size: float = 3.2, colour: Colour | None = None) -> None:
        font = ImageFont.load_default(size * self.unit)
        self.pen.text((x, y), words, font=font, fill=colour or self.theme.ink)

    def lines(self, x: float, y: float, width: float, count: int, rng: np.random.Generator) -> float:
        """Lines of text below each other; the y below the last."""
        for _ in range(count):
            words = " ".join(rng.choice(_WORDS, max(2, int(width / self.unit / 9))))
            self.text(x, y, words, 3.0)
            y += 4.6 * self.unit
        return y

    def dot(self, x: float, y: float, radius: float, colour: Colour | None = None) -> None:
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour or self.theme.faint)

    def place(self, picture: RgbArray, x: float, y: float, width: float, height: float) -> Box:
        """The picture, scaled to fit into a box and centred in it."""
        scale = min(width / picture.shape[1], height / picture.shape[0])
        w, h = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        left, top = round(x + (width - w) / 2), round(y + (height - h) / 2)
        self.image.paste(Image.fromarray(cv2.resize(picture, (w, h), interpolation=how)), (left, top))
        return left, top, w, h


def _status(canvas: _Canvas) -> float:
    """Clock and battery of a phone; the y below."""
    unit = canvas.unit
    canvas.text(5 * unit, 2 * unit, "9:41", 3.4)
    canvas.pen.rounded_rectangle(
        (canvas.width - 12 * unit, 2.6 * unit, canvas.width - 5 * unit, 5.6 * unit), unit, outline=canvas.theme.ink
    )
    return 9 * unit


def _feed(canvas: _Canvas, picture: RgbArray, rng: np.random.Generator) -> Box:
    unit, y = canvas.unit, _status(canvas)
    canvas.bar(y, 11 * unit)
    canvas.text(5 * unit, y + 3 * unit, "Pictures", 5)
    y += 15 * unit
    canvas.dot(9 * unit, y + 4 * unit, 4 * unit, canvas.theme.accent)
    canvas.text(16 * unit, y + 1 * unit, "someone.else", 3.4)
    canvas.text(16 * unit, y + 5 * unit, "yesterday", 2.6, canvas.theme.faint)
    margin = float(rng.choice([0, 4])) * unit
    width = canvas.width - 2 * margin
    height = min(width * picture.shape[0] / picture.shape[1], 0.55 * canvas.height)
    box = canvas.place(picture, margin, y + 11 * unit, width, height)
    y = box[1] + box[3] + 4 * unit
    for k in range(3):
        canvas.dot((8 + 10 * k) * unit, y + 3 * unit, 2.4 * unit, canvas.theme.ink)
    canvas.lines(5 * unit, y + 9 * unit, canvas.width - 10 * unit, int(rng.integers(1, 4)), rng)
    canvas.bar(canvas.height - 14 * unit, 14 * unit)
    for k in range(5):
        canvas.dot(canvas.width * (k + 0.5) / 5, canvas.height - 8 * unit, 2.6 * unit)
    return box


def _chat(canvas: _Canvas, picture: RgbArray, rng: np.random.Generator) -> Box:
    unit, y = canvas.unit, _status(canvas)
    canvas.bar(y, 12 * unit)
    canvas.dot(10 * unit, y + 6 * unit, 4 * unit)
    canvas.text(18 * unit, y + 4 * unit, "A friend", 4)
    y += 16 * unit
    canvas.pen.rounded_rectangle((5 * unit, y, 70 * unit, y + 15 * unit), 3 * unit, fill=canvas.theme.bar)
    y = canvas.lines(8 * unit, y + 3 * unit, 58 * unit, 2, rng) + 8 * unit
    height = min(70 * unit * picture.shape[0] / picture.shape[1], 0.45 * canvas.height)
    box = canvas.place(picture, 26 * unit, y, 70 * unit, height)
    y = box[1] + box[3] + 6 * unit
    canvas.pen.rounded_rectangle((30 * unit, y, 95 * unit, y + 10 * unit), 3 * unit, fill=canvas.theme.accent)
    canvas.text(34 * unit, y + 3 * unit, "where was this?", 3.2, (255, 255, 255))
    canvas.bar(canvas.height - 15 * unit, 15 * unit)
    canvas.text(12 * unit, canvas.height - 10 * unit, "Message", 3.4, canvas.theme.faint)
    return box


def _viewer(canvas: _Canvas, picture: RgbArray, rng: np.random.Generator) -> Box:
    unit, y = canvas.unit, _status(canvas)
    canvas.text(5 * unit, y + 2 * unit, f"{int(rng.integers(1, 29))} March", 4)
    box = canvas.place(picture, 0, 22 * unit, canvas.width, canvas.height - 52 * unit)
    for k in range(4):
        canvas.dot(canvas.width * (k + 0.5) / 4, canvas.height - 10 * unit, 3 * unit, canvas.theme.ink)
    return box


def _browser(canvas: _Canvas) -> float:
    """Tabs, an address and a row of the system's at the bottom; the y below."""
    unit = canvas.unit
    canvas.bar(0, 4 * unit)
    canvas.text(3 * unit, 0.8 * unit, "A page about pictures", 1.8)
    canvas.bar(4 * unit, 5 * unit)
    canvas.pen.rounded_rectangle((14 * unit, 4.8 * unit, 110 * unit, 8.2 * unit), unit, fill=canvas.theme.ground)
    canvas.text(16 * unit, 5.5 * unit, "https://pictures.example/today", 1.8, canvas.theme.faint)
    canvas.bar(canvas.height - 5 * unit, 5 * unit)
    for k in range(7):
        canvas.dot((6 + 6 * k) * unit, canvas.height - 2.5 * unit, 1.4 * unit)
    return 11 * unit


def _page(canvas: _Canvas, picture: RgbArray, rng: np.random.Generator) -> Box:
    unit, top = canvas.unit, _browser(canvas)
    canvas.text(24 * unit, top + 2 * unit, "What was seen at the harbour", 4)
    for k in range(8):
        canvas.text(3 * unit, top + (4 + 5 * k) * unit, str(rng.choice(_WORDS)), 2)
    text = canvas.lines(24 * unit, top + 9 * unit, 60 * unit, 2, rng)
    box = canvas.place(picture, 24 * unit, text + 2 * unit, 80 * unit, canvas.height - text - 22 * unit)
    canvas.lines(24 * unit, box[1] + box[3] + 2 * unit, 60 * unit, 2, rng)
    return box


def _window(canvas: _Canvas, picture: RgbArray, rng: np.random.Generator) -> Box:
    unit, x, y = canvas.unit, 12 * canvas.unit, 8 * canvas.unit
    width, height = canvas.width - 24 * unit, canvas.height - 18 * unit
    canvas.pen.rectangle((x, y, x + width, y + height), fill=canvas.theme.bar, outline=canvas.theme.faint)
    canvas.text(x + 2 * unit, y + unit, f"picture-{int(rng.integers(1, 999))}.jpg", 2)
    for k in range(3):
        canvas.dot(x + width - (3 + 4 * k) * unit, y + 2 * unit, 1 * unit)
    for k in range(6):
        canvas.text(x + (2 + 14 * k) * unit, y + 5 * unit, str(rng.choice(_WORDS)), 1.8, canvas.theme.faint)
    return canvas.place(picture, x + 2 * unit, y + 9 * unit, width - 4 * unit, height - 13 * unit)


def _slide(canvas: _Canvas, picture: RgbArray, rng: np.random.Generator) -> Box:
    unit = canvas.unit
    canvas.text(8 * unit, 6 * unit, "One picture, many questions", 6)
    y = 22 * unit
    for _ in range(4):
        canvas.dot(9 * unit, y + 2 * unit, 0.8 * unit, canvas.theme.accent)
        y = canvas.lines(12 * unit, y, canvas.width / 2 - 22 * unit, 1, rng) + 4 * unit
    return canvas.place(picture, canvas.width / 2, 20 * unit, canvas.width / 2 - 8 * unit, canvas.height - 30 * unit)
