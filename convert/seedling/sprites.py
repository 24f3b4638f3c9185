# SPDX-License-Identifier: Apache-2.0
"""Artwork of the seedling: emoji bitmaps of Noto Color Emoji and shapes drawn by code.

`python -m convert.seedling.sprites names` rewrites emoji.tsv (needs the package `emoji`).
`python -m convert.seedling.sprites pack OUT.npz` packs the bitmaps for a machine without the font.
"""

import functools
import io
import math
import re
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import words

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"  # Debian: fonts-noto-color-emoji
SHAPE_PX = 512  # shapes are drawn this large and only ever scaled down


def glyph(chars, font):
    """One emoji as a square RGBA picture, cropped to its ink and centred."""
    im = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(im).text((8, 8), chars, font=font, embedded_color=True)
    box = im.getbbox()
    if box is None:
        return None
    im = im.crop(box)
    side = max(im.size)
    out = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    out.paste(im, ((side - im.width) // 2, (side - im.height) // 2))
    return out


def _polygon(points):
    im = Image.new("L", (SHAPE_PX, SHAPE_PX), 0)
    half = SHAPE_PX / 2
    ImageDraw.Draw(im).polygon([(half + half * x, half + half * y) for x, y in points], fill=255)
    return im


def _ngon(n, turn=0.0, inner=None, radius=0.97):
    steps = 2 * n if inner else n
    pts = []
    for i in range(steps):
        r = radius * (inner if inner and i % 2 else 1.0)
        a = turn + 2 * math.pi * i / steps - math.pi / 2
        pts.append((r * math.cos(a), r * math.sin(a)))
    return _polygon(pts)


def _where(inside):
    y, x = np.mgrid[0:SHAPE_PX, 0:SHAPE_PX]
    x, y = (2 * x + 1) / SHAPE_PX - 1, (2 * y + 1) / SHAPE_PX - 1
    return Image.fromarray(np.where(inside(x, y), 255, 0).astype(np.uint8))


def _heart():
    t = np.linspace(0, 2 * math.pi, 400)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _polygon(list(zip(x / 17, (-y - 2.5) / 17, strict=True)))


_DRAW = {
    "circle": lambda: _where(lambda x, y: x * x + y * y < 0.9),
    "ring": lambda: _where(lambda x, y: (x * x + y * y < 0.9) & (x * x + y * y > 0.4)),
    "oval": lambda: _where(lambda x, y: x * x + (y / 0.6) ** 2 < 0.92),
    "square": lambda: _where(lambda x, y: np.maximum(abs(x), abs(y)) < 0.82),
    "rectangle": lambda: _where(lambda x, y: (abs(x) < 0.95) & (abs(y) < 0.5)),
    "triangle": lambda: _ngon(3),
    "diamond": lambda: _polygon([(0, -0.97), (0.72, 0), (0, 0.97), (-0.72, 0)]),
    "pentagon": lambda: _ngon(5),
    "hexagon": lambda: _ngon(6),
    "star": lambda: _ngon(5, inner=0.42),
    "cross": lambda: _where(
        lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.92)
    ),
    "heart": _heart,
}


class Sprites:
    """All bitmaps: index < count of emoji is an emoji, the rest are white shape masks."""

    def __init__(self, source=None):
        """`source`: archive of `pack`; without it the emoji come from the installed font."""
        self.base = []
        if source:
            z = np.load(source)
            for lo, hi in zip(z["offset"][:-1], z["offset"][1:], strict=True):
                self.base.append(Image.open(io.BytesIO(z["data"][lo:hi].tobytes())).convert("RGBa"))
        else:
            font = ImageFont.truetype(FONT, 109)  # the size of its bitmaps
            self.base = [glyph(c, font).convert("RGBa") for c, _, _ in words.emoji_table()]
        for name in words.SHAPE_NAMES:
            mask = _DRAW[name]()
            self.base.append(Image.merge("RGBa", (mask, mask, mask, mask)))

    def __len__(self):
        return len(self.base)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one object lives as long as the program
    def at(self, index, px):
        """uint8 [px, px, 4], colour premultiplied by alpha; colour never exceeds alpha."""
        a = np.array(self.base[index].resize((px, px), Image.BICUBIC))
        a[..., :3] = np.minimum(a[..., :3], a[..., 3:])
        return a


def pack(path):
    """Write the emoji of the font as lossless WebP into one npz."""
    font = ImageFont.truetype(FONT, 109)
    blobs = []
    for chars, _, _ in words.emoji_table():
        out = io.BytesIO()
        glyph(chars, font).save(out, "WEBP", lossless=True, quality=75, method=4)
        blobs.append(out.getvalue())
    offset = np.cumsum([0, *(len(b) for b in blobs)])
    np.savez(path, data=np.frombuffer(b"".join(blobs), np.uint8), offset=offset)


# Pictures of text, near-duplicates of one another, or words that a caption uses otherwise.
_SKIP = re.compile(
    r"button|keycap|clock$|thirty|input |symbol for|arrow$|arrows|middle finger"
    r"|fast-|track|heavy |circled|no one under|trade mark|copyright|registered"
)
_KEEP_CLOCK = {"alarm clock", "mantelpiece clock", "timer clock", "bow and arrow"}
_BAD_ALIAS = re.compile(
    r"\d|\+|^-|^\W|^(?:x|o|m|a|b|fu|shit|hankey|harambe|art|date|notes?|mega|"
    r"sa|imp|on|up|end|top|soon|back|metal|compression|symbols|arrow.*)$"
)


def _clean(name):
    name = name.strip(":").replace("_", " ").replace("’", "'").lower()
    return re.sub(r"[“”!.,()]", "", name).strip()


def write_names():
    """Choose the emoji and write emoji.tsv."""
    import emoji

    font = ImageFont.truetype(FONT, 109)
    colored = {f for c in (*words.COLORS, "grey", "light blue") for f in c.split(" ")}
    rows, taken = [], set()
    for chars, d in emoji.EMOJI_DATA.items():
        codes = [ord(c) for c in chars]
        if d["status"] != emoji.STATUS["fully_qualified"] or 0x200D in codes:
            continue
        if any(0x1F3FB <= c <= 0x1F3FF or 0x1F1E6 <= c <= 0x1F1FF for c in codes):
            continue  # skin tones, flags
        name = _clean(d["en"])
        bits = set(name.replace("-", " ").split(" "))
        if name in taken or ("o'clock" in name or _SKIP.search(name)) and name not in _KEEP_CLOCK:
            continue
        if bits & colored and bits & set(words.SHAPES):
            continue  # "red circle" is a drawn shape here
        im = glyph(chars, font)
        if im is None or np.asarray(im)[..., 3].mean() < 5:
            continue
        taken.add(name)
        rows.append((codes, name, [_clean(a) for a in d.get("alias", [])]))
    owner = {}
    for _, name, _ in rows:  # hand-made aliases win over the package's
        for a in words.EMOJI_ALIASES.get(name, ()):
            if a not in taken:
                owner.setdefault(a, name)
    for _, name, extra in rows:
        for a in extra:
            if a not in taken and not _BAD_ALIAS.search(a) and len(a) > 2:
                owner.setdefault(a, name)
    with open(words.EMOJI_TABLE, "w", encoding="utf-8") as f:
        f.write("# code points\tname\taliases\n")
        for codes, name, _ in rows:
            aliases = ";".join(a for a, n in owner.items() if n == name)
            f.write(f"{' '.join(f'{c:X}' for c in codes)}\t{name}\t{aliases}\n")
    missing = set(words.EMOJI_ALIASES) - taken
    print(f"{len(rows)} emoji, {len(owner)} aliases; unknown names in EMOJI_ALIASES: {missing}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["names"]:
        write_names()
    elif sys.argv[1:2] == ["pack"] and len(sys.argv) == 3:
        pack(sys.argv[2])
    else:
        sys.exit(__doc__)
