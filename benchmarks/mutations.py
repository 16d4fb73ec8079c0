"""Ways to damage a file: its bytes, its values, its archive entries, the fields of its header. All are functions of a generator."""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random

Mutation = Callable[[bytes, Random], bytes]

NUMBERS = ("0", "-1", "1", "2", "7", "1.5", "1e308", "-1e308", "1e999", "nan", "NaN", "inf", "-Infinity", "4294967296", "1000000000000")
NUMBERS += ("9223372036854775807", "18446744073709551615", "18446744073709551616", "1" + "0" * 400, "1" + "0" * 5000, "0x10", "-0.0")
VALUES = (*NUMBERS, '""', '"x"', '"../../x"', '"os:system"', '"npz:x.npz"', '"\\ud800"', '"\\u0000"', "true", "null", "[]", "{}", "[[]]")
VALUES += ('{"a": 1}', "[1, 2, 3]", '["a"]', "1979-05-27", "()", "'x'", "[" * 3000 + "]" * 3000, '{"a":' * 2000 + "1" + "}" * 2000)
TYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16")
TYPES += ("BF16", "F32", "F64", "X9")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|(?<![\w.])-?\d[\w.+-]*|\btrue\b|\bfalse\b|\bnull\b|\bTrue\b|\bFalse\b')
_WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def any_bytes(content: bytes, random: Random) -> bytes:
    """One to three of the ways that know nothing of the format."""
    for _ in range(random.choice((1, 1, 2, 3))):
        content = random.choice((_flip, _cut, _remove, _repeat, _insert, _splice, _integer, _integer, _zeros))(content, random)
    return content


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(min(len(changed), random.choice((1, 1, 4, 32)))):
        changed[_place(changed, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.choice((0, 1, 8, _place(content, random)))]


def _remove(content: bytes, random: Random) -> bytes:
    start = _place(content, random)
    return content[:start] + content[start + random.choice((1, 4, 64, 1024)) :]


def _repeat(content: bytes, random: Random) -> bytes:
    start = _place(content, random)
    part = content[start : start + random.choice((1, 8, 256, 4096))]
    return content[:start] + part * random.choice((2, 3, 50)) + content[start:]


def _insert(content: bytes, random: Random) -> bytes:
    start = _place(content, random)
    return content[:start] + random.randbytes(random.choice((1, 8, 100))) + content[start:]


def _splice(content: bytes, random: Random) -> bytes:
    return content[: _place(content, random)] + content[_place(content, random) :]


def _integer(content: bytes, random: Random) -> bytes:
    """A field of the header, or any other, set to an extreme number."""
    width, order = random.choice((1, 2, 4, 8)), random.choice("<>")
    largest = 256**width - 1
    value = random.choice((0, 1, largest, largest // 2, largest // 2 + 1, largest - 7, min(largest, 10**9), min(largest, 65_536)))
    start = random.choice((_place(content[:64], random), _place(content, random)))
    return content[:start] + struct.pack(order + _WIDTHS[width], value) + content[start + width :]


def _zeros(content: bytes, random: Random) -> bytes:
    start = _place(content, random)
    size = random.choice((4, 64, 1024))
    return content[:start] + bytes(min(size, len(content) - start)) + content[start + size :]


def _place(content: bytes | bytearray, random: Random) -> int:
    """Somewhere in it; headers are at its beginning and, of archives, at its end."""
    size = len(content)
    if not size:
        return 0
    near = random.randrange(min(size, 200))
    return random.choice((random.randrange(size), near, size - 1 - near))


def values(content: bytes, random: Random) -> bytes:
    """Texts and numbers of JSON, TOML or a Python literal exchanged, lines removed, repeated and swapped."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = random.choice((_value, _value, _value, _line, _swap))(content, random)
    return content


def _value(content: bytes, random: Random) -> bytes:
    found = list(_TOKEN.finditer(content))
    if not found:
        return any_bytes(content, random)
    token = random.choice(found)
    new = random.choice((random.choice(VALUES).encode(), random.choice(found)[0]))
    return content[: token.start()] + new + content[token.end() :]


def _line(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    lines[number : number + 1] = random.choice(([], [lines[number]] * 2, [b"[" + lines[number]], [lines[number].strip(b",")]))
    return b"\n".join(lines)


def _swap(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def safetensors(content: bytes, random: Random) -> bytes:
    """Entries of the header; its length stays right, so that what reads it goes on."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = random.randrange(4)
    if kind == 0:
        found = list(re.finditer(rb'"dtype":"(\w+)"', header))
        token = random.choice(found)
        header = header[: token.start(1)] + random.choice(TYPES).encode() + header[token.end(1) :]
    elif kind == 1:
        header = _value(header, random)
    elif kind == 2:  # the same bytes under another name, or a shape of as many elements
        header = header.replace(b"weight", random.choice((b"bias", b"", b"../w", b"a/b")), 1).replace(b"[", b"[1,", random.choice((0, 1)))
    else:
        header = any_bytes(header, random)
    return len(header).to_bytes(8, "little") + header + data


def archive(content: bytes, random: Random) -> bytes:
    """Entries of a zip archive removed, repeated, renamed or changed, sums and sizes right again; of an array file its header's values."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as opened:
            entries = [(name, opened.read(name)) for name in opened.namelist()]
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError):
        return any_bytes(content, random)
    number = random.randrange(len(entries))
    name, entry = entries[number]
    kind = random.randrange(6)
    if kind == 0:
        del entries[number]
    elif kind == 1:
        entries[number] = (random.choice(entries)[0], entry)
    elif kind == 2:
        entries[number] = (random.choice(("", "../x", name + "x", name.upper(), "train_images.npy")), entry)
    elif kind == 3:
        entries[number] = (name, random.choice(entries)[1])
    else:
        entries[number] = (name, array_header(entry, random) if entry[:6] == b"\x93NUMPY" else any_bytes(entry, random))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as written:
        for name, entry in entries:
            info = zipfile.ZipInfo(name or "x")
            info.compress_type = written.compression
            written.writestr(info, entry)
    return stream.getvalue()


def array_header(content: bytes, random: Random) -> bytes:
    """An .npy file with another type, order or shape; the header's length stays right."""
    size = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + size].rstrip(), content[10 + size :]
    if random.randrange(2):
        types = (b"'<f4'", b"'|O'", b"'<c16'", b"'<U9'", b"'<M8[s]'", b"'|V8'", b"'>i8'", b"[('a', '<i4')]", b"'<f2'", b"'<u8'")
        header = re.sub(rb"'descr': '[^']*'", lambda _: b"'descr': " + random.choice(types), header)
    else:
        shapes = (b"(1000000000000,)", b"(4, 100000, 100000)", b"(0, 99999999999)", b"(-1, 8)", b"()", b"(2,)", b"(True, 8)", b"(1.5,)")
        shapes += (b"(" + b"9" * 5000 + b",)", b"(" * 500 + b")" * 500, b"None", b"(99999, 99999, 3)")
        header = re.sub(rb"'shape': \([^)]*\)", lambda _: b"'shape': " + random.choice(shapes), header)
    if not random.randrange(3):
        header = any_bytes(header, random)
    return content[:8] + len(header).to_bytes(2 if len(header) < 65_536 else 3, "little")[:2] + header + data


def png_size(content: bytes, random: Random) -> bytes:
    """Another width and height, under a right checksum."""
    if content[12:16] != b"IHDR":
        return any_bytes(content, random)
    sizes = (0, 1, 7, 20_000, 65_535, 200_000, 2**31 - 1, 2**31, 2**32 - 1)
    fields = struct.pack(">II", random.choice(sizes), random.choice(sizes)) + content[24:29]
    return content[:16] + fields + zlib.crc32(b"IHDR" + fields).to_bytes(4, "big") + content[33:]
