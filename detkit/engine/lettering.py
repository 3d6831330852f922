"""Text of any script as pixels: which font has its characters, and the text drawn in it.

DejaVu Sans, which comes with matplotlib, has the alphabets of Latin, Greek, Cyrillic and Arabic. Of the fonts of the
system one is taken that has what it lacks, such as Chinese or Devanagari.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detkit.config import UserError

Colour = tuple[int, int, int]  # RGB
MISSING = "?"  # instead of a character that no font has
PADDING = 0.2  # around a text, in parts of its height


@lru_cache(maxsize=4096)  # the labels of a video, whose scores have two digits
def render(text: str, height: int, colour: Colour, background: Colour, font: Path | None = None) -> np.ndarray:
    """uint8 `[h, w, 3]`, read-only: one line of text, letters of `height` px, on its background.

    font  a file; None: one that is installed and has the characters
    """
    file = font_for(text, font)
    letters = _opened(file, height)
    text = "".join(char if ord(char) in _characters(file) else MISSING for char in text)
    left, _, right, _ = letters.getbbox(text)
    ascent, descent = letters.getmetrics()
    margin = max(1, round(PADDING * height))
    size = (max(1, round(right - min(0, left))) + 2 * margin, ascent + descent + margin)
    image = Image.new("RGB", size, background)
    ImageDraw.Draw(image).text((margin - min(0, left), margin // 2), text, colour, letters)
    pixels = np.array(image)
    pixels.flags.writeable = False
    return pixels


@lru_cache(maxsize=4096)
def font_for(text: str, font: Path | None = None) -> Path:
    """`font`, or the first font with all characters of the text, or the one that has most. Raises UserError for a file
    that is no font."""
    if font is not None:
        return font
    needed = {ord(char) for char in text}
    best, most = default_font(), -1
    for path in _fonts():
        known = len(needed & _characters(path))
        if known == len(needed):
            return path
        if known > most:
            best, most = path, known
    return best


def missing_characters(texts: Sequence[str], font: Path | None = None) -> list[str]:
    """The texts with characters that their font does not have, so that they are drawn as `?`."""
    return [text for text in texts if {ord(char) for char in text} - _characters(font_for(text, font))]


def notes_on_fonts(names: Sequence[str], font: Path | None = None) -> list[str]:
    """A sentence on names that cannot be drawn. Raises UserError if `font` is no font."""
    missing = missing_characters(names, font)
    if not missing:
        return []
    whose = f"{font}" if font else "no installed font"
    verb = "lacks" if font else "has"
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [
        f"{whose} {verb} the characters of {', '.join(missing[:3])}{more}: drawn as {MISSING!r}; name a font that has "
        "them with --font FILE (.ttf, .otf, .ttc)"
    ]


def default_font() -> Path:
    package = importlib.util.find_spec("matplotlib")  # which takes a while to import
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def _fonts() -> Iterator[Path]:
    yield default_font()
    yield from _installed_fonts()


@cache
def _installed_fonts() -> tuple[Path, ...]:
    """Upright ones of usual weight first."""
    from matplotlib.font_manager import findSystemFonts

    paths = {Path(name) for name in findSystemFonts()}
    styles = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")
    return tuple(sorted(paths, key=lambda path: (sum(style in path.name.lower() for style in styles), str(path))))


@lru_cache(maxsize=64)
def _opened(path: Path, height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), height)


@cache
def _characters(path: Path) -> frozenset[int]:
    """The code points that a font has; none if an installed one is damaged."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError, AssertionError) as error:
        if path in _installed_fonts():
            return frozenset()
        raise UserError(f"--font {path}: no font that can be read ({error}); expected a .ttf, .otf or .ttc") from error
