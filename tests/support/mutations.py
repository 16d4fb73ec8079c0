"""Damaged copies of a file, the same ones for the same seed."""

import random
from collections.abc import Iterator


def mutations(content: bytes, *, count: int, seed: int) -> Iterator[bytes]:
    """`count` copies with bytes flipped, set to extremes, cut out, doubled or cut off; half of the changes lie in the first kilobyte."""
    generator = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(generator.choice((1, 1, 2, 8))):
            place = generator.randrange(min(len(changed), generator.choice((1024, len(changed)))))
            kind = generator.randrange(6)
            if kind == 0:
                changed[place] ^= 1 << generator.randrange(8)
            elif kind == 1:
                changed[place] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
            elif kind == 2:
                changed[place : place + generator.choice((1, 4, 8))] = generator.randbytes(8)
            elif kind == 3:
                del changed[place : place + generator.randrange(1, 16)]
            elif kind == 4:
                changed[place:place] = changed[place : place + generator.randrange(1, 64)]
            else:
                del changed[max(1, place + generator.randrange(len(changed))) :]
        yield bytes(changed or b"\0")
