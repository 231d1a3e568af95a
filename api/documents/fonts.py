"""The letters of PDF documents: Noto Sans, embedded, for Latin, Cyrillic, Greek and Vietnamese.

Chinese, Japanese and Korean name a font that every reader brings along, so that a file needn't carry
megabytes of it. Of anything else it is shown that something stood there.
"""

import re
import unicodedata
from functools import cache
from html import escape
from io import BytesIO
from threading import Lock

from pymupdf_fonts.NotoSans_Bold import fontbuffer as bold
from pymupdf_fonts.NotoSans_Regular import fontbuffer as regular
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.pdfmetrics import registerFont, registerFontFamily
from reportlab.pdfbase.ttfonts import TTFont

__all__ = ["BOLD", "REGULAR", "markup", "plain_text", "register_fonts"]

REGULAR, BOLD = "Noto Sans", "Noto Sans Bold"
CHINESE, JAPANESE, KOREAN = "STSong-Light", "HeiseiKakuGo-W5", "HYGothic-Medium"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_KANA = re.compile("[\u3041-\u30ff]")
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
_SPACES = re.compile(r"[ \t\r\n]+")
_EAST_ASIAN = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]+")


def register_fonts() -> frozenset[int]:
    """Once in a process, from memory; the letters that the embedded font has."""
    with _REGISTERING:
        return _registered()


_REGISTERING = Lock()
"""A font that is registered anew would spoil the page that another thread is drawing."""


@cache
def _registered() -> frozenset[int]:
    font = TTFont(REGULAR, BytesIO(regular))
    registerFont(font)
    registerFont(TTFont(BOLD, BytesIO(bold)))
    registerFontFamily(REGULAR, normal=REGULAR, bold=BOLD, italic=REGULAR, boldItalic=BOLD)
    for name in (CHINESE, JAPANESE, KOREAN):
        registerFont(UnicodeCIDFont(name))
        registerFontFamily(name, normal=name, bold=name, italic=name, boldItalic=name)

    return frozenset(font.face.charToGlyph)


def plain_text(text: str) -> str:
    """For the embedded font alone."""
    return _printable(_composed(text))


def markup(text: str) -> str:
    """The text as a paragraph takes it: harmless, each stretch in a font that has it."""
    text = _composed(text)
    east_asian = JAPANESE if _KANA.search(text) else KOREAN if _HANGUL.search(text) else CHINESE
    parts, end = [], 0
    for found in _EAST_ASIAN.finditer(text):
        parts.append(escape(_printable(text[end : found.start()])))
        parts.append(f'<font name="{east_asian}">{escape(found[0])}</font>')
        end = found.end()
    return "".join([*parts, escape(_printable(text[end:]))])


def _composed(text: str) -> str:
    """Letters with their accents as one sign; a space for every other space and line end."""
    return unicodedata.normalize("NFC", _SPACES.sub(" ", text))


def _printable(text: str) -> str:
    """With a mark for every letter that the embedded font lacks."""
    known = register_fonts()
    return "".join(letter if ord(letter) in known else REPLACEMENT for letter in text)
