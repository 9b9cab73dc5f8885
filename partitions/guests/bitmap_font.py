"""Letters of 5 x 7 pixels: seven rows, five bits each, the leftmost the highest. Small letters look as large ones."""

from typing import Final

GLYPH_WIDTH: Final = 5
GLYPH_HEIGHT: Final = 7

# Each row is a letter of base 32: 0 to 9, then a to v.
_GLYPHS: Final = {
    " ": "0000000",
    "A": "4ahhvhh",
    "B": "uhhuhhu",
    "C": "ehggghe",
    "D": "uhhhhhu",
    "E": "vgguggv",
    "F": "vgguggg",
    "G": "ehgnhhf",
    "H": "hhhvhhh",
    "I": "e44444e",
    "J": "72222ic",
    "K": "hikokih",
    "L": "ggggggv",
    "M": "hrllhhh",
    "N": "hhpljhh",
    "O": "ehhhhhe",
    "P": "uhhuggg",
    "Q": "ehhhlid",
    "R": "uhhukih",
    "S": "fgge11u",
    "T": "v444444",
    "U": "hhhhhhe",
    "V": "hhhhha4",
    "W": "hhhllra",
    "X": "hha4ahh",
    "Y": "hha4444",
    "Z": "v1248gv",
    "0": "ehjlphe",
    "1": "4c4444e",
    "2": "eh1248v",
    "3": "v2421he",
    "4": "26aiv22",
    "5": "vgu11he",
    "6": "68guhhe",
    "7": "v124888",
    "8": "ehhehhe",
    "9": "ehhf12c",
    ".": "00000cc",
    ",": "0000c48",
    ":": "0cc0cc0",
    ";": "0cc0c48",
    "!": "4444404",
    "?": "eh12404",
    "-": "000v000",
    "_": "000000v",
    "+": "044v440",
    "=": "00v0v00",
    "*": "04lel40",
    "/": "01248g0",
    "'": "c480000",
    '"': "aaa0000",
    "(": "2488842",
    ")": "8422248",
    "#": "aavavaa",
    "@": "eh1dlle",
}
_UNKNOWN: Final = "vhhhhhv"

assert all(len(rows) == GLYPH_HEIGHT for rows in _GLYPHS.values())


def rows_of(character: str) -> list[int]:
    """A box for what has no picture here."""
    return [int(row, 32) for row in _GLYPHS.get(character.upper(), _UNKNOWN)]
