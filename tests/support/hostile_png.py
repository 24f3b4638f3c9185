# SPDX-License-Identifier: Apache-2.0
"""PNG files whose chunks or metadata lie."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"bonsai\0"
_PLAIN = KEYWORD + b"\0\0\0\0"  # iTXt: not compressed, method, no language, no translation


def chunk(kind: bytes, data: bytes, length: int | None = None, crc: int = 0) -> bytes:
    head = struct.pack(">I", len(data) if length is None else length)
    return head + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
END = chunk(b"IEND", b"")


def _bomb(copies: int = 20_000) -> bytes:
    """5 MB of zeros in 32 kB, a little more than is unpacked. Spelled out with the fixed Huffman
    codes (RFC 1951, 3.2.6), so that the bytes do not depend on the version of zlib."""
    zero, copy_258_bytes, distance_1, end = "00110000", "11000101", "00000", "0000000"
    bits = "1" + "10" + zero + (copy_258_bytes + distance_1) * copies + end
    bits += "0" * (-len(bits) % 8)
    packed = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    text = bytes(1 + 258 * copies)
    stream = b"\x78\x01" + packed + struct.pack(">I", zlib.adler32(text))
    assert zlib.decompress(stream) == text
    return stream


def _cases() -> Iterator[tuple[str, str, bytes]]:
    def text(name: str, words: str, kind: bytes, data: bytes, **lies):
        return name, words, SIGNATURE + HEADER + chunk(kind, data, **lies) + END

    yield "empty", "is not a PNG file", b""
    yield "web-page", "is not a PNG file", b"<html>404</html>"
    yield "signature-only", "it is cut off", SIGNATURE
    yield "no-header", "begins with a chunk IHDR of 13 bytes", SIGNATURE + END
    short = chunk(b"IHDR", bytes(12))
    yield "header-short", "begins with a chunk IHDR of 13 bytes", SIGNATURE + short + END
    yield "no-metadata", "carries no bonsai metadata", SIGNATURE + HEADER + END
    yield "no-end", "it is cut off", SIGNATURE + HEADER
    good = _PLAIN + b"prompt: a\nseed: 1\n"
    yield text("length-negative", "a chunk of 4294967295 bytes", b"iTXt", good, length=0xFFFFFFFF)
    yield text("length-max", "it is cut off", b"iTXt", good, length=0x7FFFFFFF)
    yield text("length-limit", "it is cut off", b"iTXt", good, length=1 << 22)
    yield text("length-of-picture", "it is cut off", b"IDAT", b"", length=0x7FFFFFFF)
    yield text("checksum-wrong", "wrong checksum in chunk iTXt", b"iTXt", good, crc=1)
    yield text("type-escape", "a chunk whose type is not letters", b"i\x1b[m", good)
    yield text("text-cut-in-flags", "is cut short", b"iTXt", KEYWORD)
    yield text("text-without-fields", "is cut short", b"iTXt", KEYWORD + b"\0\0abc")
    yield text("text-flag", "compression flag is 2", b"iTXt", KEYWORD + b"\2\0\0\0x")
    yield text("text-method", "compression method is 9", b"zTXt", KEYWORD + b"\x09x")
    yield text("text-zero-byte", "contains a zero byte", b"iTXt", _PLAIN + b"a\0b")
    yield text(
        "text-overlong-utf8", "it is not UTF-8 at byte 8", b"iTXt", _PLAIN + b"prompt: \xc0\xaf"
    )
    yield text(
        "text-surrogate", "it is not UTF-8 at byte 8", b"iTXt", _PLAIN + b"prompt: \xed\xa0\x80"
    )
    yield text("zlib-garbage", 'text chunk "bonsai" is', b"zTXt", KEYWORD + b"\0garbage")
    yield text("zlib-bomb", 'text chunk "bonsai" is', b"zTXt", KEYWORD + b"\0" + _bomb())
    yield text("no-seed", "names no prompt or no seed", b"iTXt", _PLAIN + b"prompt: a\n")
    yield text("seed-text", "seed", b"iTXt", _PLAIN + b"prompt: a\nseed: abc\n")
    yield text("seed-huge", "seed", b"iTXt", _PLAIN + b"prompt: a\nseed: " + b"9" * 99 + b"\n")
    yield text("size-negative", "size", b"iTXt", good + b"size: -64x64\n")
    yield text("steps-huge", "steps", b"iTXt", good + b"steps: 99999999999999999999\n")
    yield text("guidance-nan", "guidance", b"iTXt", good + b"guidance: nan\n")
    yield text("dtype-unknown", "noise_dtype", b"iTXt", good + b"noise_dtype: f8\n")


def cases() -> Iterator[tuple[str, str, str, bytes]]:
    """(file, reader, words, bytes)"""
    for name, words, data in _cases():
        yield f"png/{name}.png", "png", words, data
