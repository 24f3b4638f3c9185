# SPDX-License-Identifier: Apache-2.0
"""JSON from a stranger: a bounded, strict parser, and values made fit for one line of a message.

Strict means: UTF-8 without a byte order mark, no name twice in an object, no NaN or Infinity, no
lone surrogates (they have no UTF-8 form), no numbers of hundreds of digits, no deep nesting.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from pathlib import Path

from .errors import ConvertError

MAX_DEPTH = 32
_MAX_DIGITS = 40  # of a whole number: Python's conversion takes quadratic time


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 16
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def brief(value: object) -> str:
    """repr of a value from a file, cut to a length that fits into a message.

    The work is bounded too: a pickle of a hundred bytes can hold a tuple whose whole repr would
    fill the memory, each level naming the one below twice.
    """
    if isinstance(value, (list, tuple)) and len(value) > 16:
        return f"a list of {len(value)}"
    if isinstance(value, str):
        text = value[:80]
        shown = repr(text) if text.isprintable() else ascii(text)
    else:
        shown = _SHORT.repr(value)
    shown = shown.encode("utf-8", "backslashreplace").decode("utf-8")
    return shown if len(shown) <= 100 else shown[:97] + "..."


def is_plain(text: str) -> bool:
    """Whether text fits into messages and GGUF names: no control characters, has a UTF-8 form."""
    if any(c < " " or c == "\x7f" for c in text):
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole regular file of at most `limit` bytes; OSError as `open` raises it."""
    with open(path, "rb", opener=open_regular) as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ConvertError(f"{path}: more than {limit} bytes, too long for what it should hold")
    return data


def open_regular(path: str, flags: int) -> int:
    """An opener for `open` that refuses pipes, which would wait for their writer, and devices."""
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConvertError(f"{path}: not a regular file")
    return fd


def _unique(pairs: list) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"the name {brief(twice)} occurs twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_tree(root: object) -> None:
    """Depth of nesting, and text that has no UTF-8 form."""
    level, depth = [root], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        inner: list = []
        for value in level:
            texts = ()
            if isinstance(value, dict):
                texts = value
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, str):
                texts = (value,)
            for text in texts:
                if not text.isascii():
                    text.encode("utf-8")  # raises UnicodeEncodeError, a ValueError
        level, depth = inner, depth + 1


def parse(data: bytes) -> object:
    """The value of a JSON text; ValueError says what is wrong with it."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_no_constant,
        )
        _check_tree(value)
    except UnicodeError as e:
        raise ValueError(f"text that is not valid Unicode: {e.reason}") from e
    except RecursionError as e:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from e
    return value
