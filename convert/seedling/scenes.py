# SPDX-License-Identifier: Apache-2.0
"""Scene grammar of the seedling: captions and the pictures they mean. Standard library only.

Geometry is fixed, so a picture can be checked against its caption: one object in the middle, pairs
and relations at 0.26 and 0.74 of the side, two side by side, three as one above two, four in the
corners. No background in the caption means white; a gradient runs from top to bottom.
"""

import hashlib
import random
from dataclasses import dataclass, field

from . import words
from .words import SHAPE_NAMES, emoji_table

LOW, HIGH = 0.26, 0.74
SINGLE_SIZE = {"small": 0.34, "normal": 0.62, "big": 0.86}
GROUP_SIZE = 0.44

# Slot -> (centre x, centre y, size): fractions of width, height, shorter side.
SLOTS = {
    "small": (0.5, 0.5, SINGLE_SIZE["small"]),
    "normal": (0.5, 0.5, SINGLE_SIZE["normal"]),
    "big": (0.5, 0.5, SINGLE_SIZE["big"]),
    "left": (LOW, 0.5, GROUP_SIZE),
    "right": (HIGH, 0.5, GROUP_SIZE),
    "top": (0.5, LOW, GROUP_SIZE),
    "bottom": (0.5, HIGH, GROUP_SIZE),
    "top_left": (LOW, LOW, GROUP_SIZE),
    "top_right": (HIGH, LOW, GROUP_SIZE),
    "bottom_left": (LOW, HIGH, GROUP_SIZE),
    "bottom_right": (HIGH, HIGH, GROUP_SIZE),
}
SLOT_NAMES = tuple(SLOTS)
LAYOUTS = {
    2: ("left", "right"),
    3: ("top", "bottom_left", "bottom_right"),
    4: ("top_left", "top_right", "bottom_left", "bottom_right"),
}
CATEGORIES = ("single", "colors", "counting", "two_objects", "position", "binding", "three_objects")
# Training sees the emoji more often than the test does: shapes and colours are learned at once.
TRAINING_WEIGHTS = (0.26, 0.03, 0.15, 0.2, 0.2, 0.05, 0.11)
SHAPE_SHARE, TRAINING_SHAPE_SHARE = 0.25, 0.12  # of the things in pairs, counts and threes
COLOR_NAMES = tuple(words.COLORS)

_LEADS = (
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "a photo of ",
    "an illustration of ",
    "an emoji of ",
    "an icon of ",
    "a painting of ",
    "draw ",
    "show me ",
    "please draw ",
)
_RELATIONS = {  # phrase -> slots of the first and the second object
    "above": ("top", "bottom"),
    "over": ("top", "bottom"),
    "on top of": ("top", "bottom"),
    "below": ("bottom", "top"),
    "under": ("bottom", "top"),
    "beneath": ("bottom", "top"),
    "underneath": ("bottom", "top"),
    "to the left of": ("left", "right"),
    "left of": ("left", "right"),
    "on the left of": ("left", "right"),
    "to the right of": ("right", "left"),
    "right of": ("right", "left"),
    "on the right of": ("right", "left"),
}
_RELATION_GROUPS = (
    ("above", "over", "on top of"),
    ("below", "under", "beneath", "underneath"),
    ("to the left of", "left of", "on the left of"),
    ("to the right of", "right of", "on the right of"),
)


@dataclass(frozen=True)
class Thing:
    """What an object is: a sprite, tinted when it is a shape, and the names it goes by."""

    sprite: int
    names: tuple
    color: str | None = None
    plain: bool = False  # the names say it all: a colour word would be wrong or is not needed


@dataclass
class Scene:
    """A caption and its picture: `objects` are (slot name, Thing)."""

    caption: str
    category: str
    background: tuple  # one colour name, or two from top to bottom
    objects: list = field(default_factory=list)


def normalise(caption):
    """Spelling that the hold-out test compares: case, blanks and the final stop do not count."""
    return " ".join(caption.lower().split()).rstrip(". ")


def held_out(caption):
    """True for about one caption in 64; the recipe never trains on those."""
    return hashlib.sha1(normalise(caption).encode()).digest()[0] % 64 == 0


class Grammar:
    """Draws scenes. The same `random.Random` state gives the same scene on every machine."""

    def __init__(self, shape_share=SHAPE_SHARE):
        self.shape_share = shape_share
        self.emoji = [
            Thing(i, (name, *aliases), plain=True)
            for i, (_, name, aliases) in enumerate(emoji_table())
        ]
        self.shape_base = len(self.emoji)
        heart = self.shape_base + SHAPE_NAMES.index("heart")
        self.emoji.append(Thing(heart, ("heart",), "red", plain=True))
        owners = {}  # "houses" is an emoji of its own, and what two of "house" are called
        for thing in self.emoji:
            for form in {f for name in thing.names for f in (name, words.plural(name))}:
                owners[form] = owners.get(form, 0) + 1
        self.unclear = {form for form, n in owners.items() if n > 1}

    def emoji_thing(self, rng):
        return rng.choice(self.emoji)

    def shape_thing(self, rng, exclude=()):
        """A shape in a colour that `exclude` does not contain."""
        shape = rng.randrange(len(SHAPE_NAMES))
        color = rng.choice([c for c in COLOR_NAMES if c not in exclude])
        name = SHAPE_NAMES[shape]
        return Thing(self.shape_base + shape, (name, *words.SHAPES[name]), color)

    def thing(self, rng, background):
        if rng.random() < self.shape_share:
            return self.shape_thing(rng, background)
        while True:
            t = self.emoji_thing(rng)
            if t.color not in background:
                return t

    # -- phrases -------------------------------------------------------------------------

    def color_word(self, color, rng):
        aliases = words.COLOR_ALIASES.get(color, ())
        return rng.choice(aliases) if aliases and rng.random() < 0.3 else color

    def clear_names(self, thing, many):
        """Names that mean nothing else in the plural: two "books" could be one emoji."""
        if not (thing.plain and many):
            return thing.names
        return [name for name in thing.names if words.plural(name) not in self.unclear]

    def noun(self, thing, rng, many=False):
        """Name of a thing without article, shapes with their colour."""
        name, *others = self.clear_names(thing, many)
        if others and rng.random() < (0.45 if thing.plain else 0.15):
            name = rng.choice(others)
        name = words.plural(name) if many else name
        if thing.plain:
            return name
        color = self.color_word(thing.color, rng)
        r = rng.random()
        if r < 0.04:
            return f"{name} in {color}"
        return f"{color} colored {name}" if r < 0.08 else f"{color} {name}"

    def phrase(self, thing, rng, size=None):
        """Noun phrase of one object: article, size, name."""
        noun = self.noun(thing, rng)
        bare = words.looks_plural(noun) and rng.random() < 0.6
        if size:
            noun = f"{rng.choice(words.SIZE_WORDS[size])} {noun}"
        r = rng.random()
        if bare or r < 0.06:
            return noun
        return f"one {noun}" if r < 0.09 else words.article(noun)

    def background(self, rng):
        r = rng.random()
        if r < 0.15:
            return ("white",)
        if r < 0.33:
            return tuple(rng.sample(COLOR_NAMES, 2))
        return (rng.choice(COLOR_NAMES),)

    def background_phrase(self, background, rng):
        """(text in front of the objects, text after them)."""
        a = self.color_word(background[0], rng)
        if len(background) == 2:
            b = self.color_word(background[1], rng)
            tail = rng.choice(
                (
                    f"on {words.article(a)} to {b} gradient background",
                    f"on {words.article(a)} to {b} gradient",
                    f"on a gradient from {a} to {b}",
                    f"on a gradient background from {a} to {b}",
                    f"with {words.article(a)} to {b} gradient background",
                    f"on a background that fades from {a} to {b}",
                )
            )
            return "", " " + tail
        if background == ("white",) and rng.random() < 0.5:
            return "", ""
        r = rng.random()
        if r < 0.55:
            return "", f" on {words.article(a)} background"
        if r < 0.62:
            return f"on {words.article(a)} background, ", ""
        return "", rng.choice(
            (
                f" on {a}",
                f" on {a} background",
                f", {a} background",
                f" with {words.article(a)} background",
                f" against {words.article(a)} background",
                f" in front of {words.article(a)} background",
                f" over {words.article(a)} background",
            )
        )

    # -- scenes --------------------------------------------------------------------------

    def _single(self, rng, bg, category):
        thing = self.shape_thing(rng, bg) if category == "colors" else None
        while thing is None or thing.color in bg:
            thing = self.emoji_thing(rng)
        size = rng.choice((None, None, "small", "big"))
        return self.phrase(thing, rng, size), [(size or "normal", thing)]

    def _counting(self, rng, bg):
        n, thing = rng.choice((2, 3, 4)), self.thing(rng, bg)
        while not self.clear_names(thing, many=True):
            thing = self.thing(rng, bg)
        text = f"{rng.choice(words.COUNT_WORDS[n])} {self.noun(thing, rng, many=True)}"
        return text, [(slot, thing) for slot in LAYOUTS[n]]

    def _different(self, rng, bg, count, shapes_only):
        """`count` things of different names; shapes of one scene differ in colour as well."""
        out = []
        while len(out) < count:
            used = (*bg, *(t.color for t in out if t.color))
            t = self.shape_thing(rng, used) if shapes_only else self.thing(rng, used)
            if all(t.sprite != o.sprite for o in out):
                out.append(t)
        return out

    def _pair(self, rng, bg, category):
        a, b = self._different(rng, bg, 2, category == "binding")
        pa, pb = self.phrase(a, rng), self.phrase(b, rng)
        related = category == "position" or category == "binding" and rng.random() < 0.6
        if not related:
            join = rng.choice((" and ", " and ", " next to ", " beside ", " with ", ", "))
            return pa + join + pb, [("left", a), ("right", b)]
        r = rng.random()
        if r < 0.07:
            return f"{pa} on the left and {pb} on the right", [("left", a), ("right", b)]
        if r < 0.11:
            return f"{pa} on the right and {pb} on the left", [("right", a), ("left", b)]
        if r < 0.15:
            return f"{pa} at the top and {pb} at the bottom", [("top", a), ("bottom", b)]
        if r < 0.18:
            return f"{pa} at the bottom and {pb} at the top", [("bottom", a), ("top", b)]
        relation = rng.choice(rng.choice(_RELATION_GROUPS))
        sa, sb = _RELATIONS[relation]
        return f"{pa} {relation} {pb}", [(sa, a), (sb, b)]

    def _three(self, rng, bg):
        things = self._different(rng, bg, 3, rng.random() < 0.25)
        a, b, c = (self.phrase(t, rng) for t in things)
        text = rng.choice(
            (
                f"{a}, {b} and {c}",
                f"{a}, {b}, and {c}",
                f"{a} above {b} and {c}",
                f"{a} and {b} and {c}",
            )
        )
        return text, list(zip(LAYOUTS[3], things, strict=True))

    def scene(self, rng, category=None):
        """One scene, of a random category unless one is named."""
        category = category or rng.choices(CATEGORIES, TRAINING_WEIGHTS)[0]
        bg = self.background(rng)
        if category in ("single", "colors"):
            text, objects = self._single(rng, bg, category)
        elif category == "counting":
            text, objects = self._counting(rng, bg)
        elif category == "three_objects":
            text, objects = self._three(rng, bg)
        else:
            text, objects = self._pair(rng, bg, category)
        front, back = self.background_phrase(bg, rng)
        lead = rng.choice(_LEADS) if not front and rng.random() < 0.25 else ""
        caption = front + lead + text + back
        if rng.random() < 0.12:
            caption = caption[0].upper() + caption[1:]
        if rng.random() < 0.1:
            caption += "."
        return Scene(caption, category, bg, objects)

    def split(self, seed, held, category=None):
        """Endless scenes of the training (held=False) or the test side of the hold-out."""
        rng = random.Random(seed)
        while True:
            s = self.scene(rng, category)
            if held_out(s.caption) == held:
                yield s
