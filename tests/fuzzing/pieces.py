"""How the bytes of one input become what a peer says: pieces behind one another, each with its length in front.

What cannot be cut is one last piece, so every input is one. Seeds are made by `join`.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

LENGTH_BYTES: Final = 2
PIECES_MAX: Final = 64  # of one input


def cut(data: bytes) -> Iterator[bytes]:
    at = 0
    for _ in range(PIECES_MAX):
        if at + LENGTH_BYTES > len(data):
            return
        size = int.from_bytes(data[at : at + LENGTH_BYTES], "little")
        at += LENGTH_BYTES
        yield data[at : at + size]
        at += size


def join(pieces: Sequence[bytes]) -> bytes:
    return b"".join(len(piece).to_bytes(LENGTH_BYTES, "little") + piece for piece in pieces)


def varied(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One input out of `seeds`: pieces left out, doubled, swapped, cut and written over, as no honest peer would."""
    pieces = list(cut(rng.choice(seeds)))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(pieces)) if pieces else 0
        match rng.randrange(8):
            case 0 if pieces:
                del pieces[at]
            case 1 if pieces:
                pieces.insert(rng.randrange(len(pieces)), pieces[at])
            case 2 if pieces:
                other = rng.randrange(len(pieces))
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case 3 if pieces and pieces[at]:
                pieces[at] = pieces[at][: rng.randrange(len(pieces[at]))]
            case 4:
                pieces.insert(at, rng.randbytes(rng.randrange(80)))
            case _ if pieces and pieces[at]:
                piece = bytearray(pieces[at])
                for _ in range(rng.randrange(1, 4)):
                    place, size = rng.randrange(len(piece)), rng.choice((1, 1, 2, 4, 8))
                    values = (0, 1, rng.getrandbits(64), (1 << 63) - 1, (1 << 64) - 1, 1 << 31, len(piece))
                    value = rng.choice(values) & ((1 << 8 * size) - 1)
                    piece[place : place + size] = value.to_bytes(size, "little")[: len(piece) - place]
                pieces[at] = bytes(piece)
    return join(pieces)
