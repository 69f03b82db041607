"""A font for any label: Pillow's own for ASCII, else one of the system's that has its letters."""

from __future__ import annotations

from functools import cache, lru_cache

from PIL import ImageFont

from sigrl_deploy.errors import printable

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Pillow looks for these names in the folders of the system. The first is on most Linux machines, and many letters are in the
# second lines of Linux, macOS and Windows; the others have one script or few.
_NAMES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "FreeSans.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "unifont.otf"),
    *("NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf"),
    *("Arial.ttf", "Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),
    *("segoeui.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Nirmala.ttf", "Nirmala.ttc", "LeelawUI.ttf", "seguisym.ttf"),
)
_NO_CHARACTER = "\uffff"  # no font has it, so that it shows what a font draws for what it lacks
_CHECKED_SIZE = 20


def drawable(text: str, size: int) -> tuple[Font, str]:
    """A font of `size` pixels with the text's letters, and the text, where letters that it lacks are written as escapes."""
    text = printable(text)
    if text.isascii():
        return ImageFont.load_default(size), text
    name = _best_font(frozenset(text) - frozenset(map(chr, range(128))))
    font = _system_font(name, size) if name else None
    letters = (c if c.isascii() or (name and _has(name, c)) else _escaped(c) for c in text)
    return font or ImageFont.load_default(size), "".join(letters)


def _escaped(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode("ascii")


@lru_cache(1024)
def _best_font(letters: frozenset[str]) -> str | None:
    """The first font that has most of the letters; None where none has any."""
    best, most = None, 0
    for name in _NAMES:
        if _system_font(name, _CHECKED_SIZE) is None:
            continue
        found = sum(_has(name, letter) for letter in letters)
        if found > most:
            best, most = name, found
        if found == len(letters):
            break
    return best


@cache
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ImportError):  # not there, not a font, or a Pillow without FreeType
        return None


@lru_cache(4096)
def _has(name: str, letter: str) -> bool:
    font = _system_font(name, _CHECKED_SIZE)
    assert font is not None
    drawn, lacking = font.getmask(letter), font.getmask(_NO_CHARACTER)
    return letter.isspace() or drawn.size != lacking.size or bytes(drawn) != bytes(lacking)
