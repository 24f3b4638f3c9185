# SPDX-License-Identifier: Apache-2.0
"""Does a picture show its prompt? NumPy and Pillow only, no learned model, no randomness.

The ideal picture of the scene is known, so each criterion asks how far the picture is from it:

    count     as many objects as asked for, each in about the right outline
    place     centre and size of each object, and none of them nearer to another one's picture
    color     background (both ends of a gradient) and shapes take the nearest colour of the table
              as asked; an emoji keeps its mean colour
    identity  of all sprites (shapes in all colours), drawn in that place on that background, the
              one asked for is the nearest
    clean     PSNR to the ideal picture

A prompt is followed when the first four hold. `clean` is reported beside them: a picture may be
soft or noisy and still show what was asked.
"""

from dataclasses import dataclass, field

import numpy as np
import world
from nearest import NearestSprite
from outline import (
    blobs,
    centre_and_spread,
    coarse,
    fit_background,
    outline,
    recentred_overlap,
)
from seedling import compose, words

CRITERIA = ("count", "place", "color", "identity")

OVERLAP = 0.5  # recentred intersection over union that makes an object
FAINT = 0.03  # of its square: what differs from its background by less has no outline to judge
EXTRA = 0.25  # of the smallest object's area: a separate part this large is one object too many
SHARE = 0.25  # of its area in each of two places: a part that joins two objects into one
CENTRE = 0.05  # of the shorter side: how far the centre may be off
SPREAD = 1.25  # how many times too large or too small an object may be
BACKGROUND_RMS = 18.0  # sRGB levels, likewise below
COLOR_DISTANCE = 70.0
EMOJI_COLOR_DISTANCE = 40.0
CLEAN_PSNR = 22.0  # dB

_PALETTE = np.array(list(words.COLORS.values()), np.float32)
_COLOR_NAMES = tuple(words.COLORS)


@dataclass
class Verdict:
    """Outcome for one picture. `notes` say what was wrong."""

    count: bool = True
    place: bool = True
    color: bool = True
    identity: bool = True
    psnr: float = 0.0
    objects: int = 0  # seen; only a hint once `count` is False
    notes: list = field(default_factory=list)

    @property
    def clean(self):
        return self.psnr >= CLEAN_PSNR

    @property
    def followed(self):
        return all(getattr(self, c) for c in CRITERIA)

    def fail(self, criterion, note):
        setattr(self, criterion, False)
        self.notes.append(f"{criterion}: {note}")


def psnr(a, b):
    """Of two uint8 pictures, dB; 99 when they are equal."""
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)
    return min(99.0, float(10 * np.log10(255.0**2 / max(float(error), 1e-9))))


def nearest_color(rgb):
    """(name, distance) of the nearest colour of the table."""
    d = np.sqrt(((_PALETTE - rgb) ** 2).sum(1))
    return _COLOR_NAMES[int(d.argmin())], float(d.min())


@dataclass
class _Place:
    """Where an object belongs."""

    x: int
    y: int
    px: int
    thing: object
    outline: np.ndarray  # float32 [height, width]: of the ideal picture
    mine: np.ndarray  # bool [height, width]: pixels nearer to this place than to any other

    @property
    def box(self):
        return slice(self.y, self.y + self.px), slice(self.x, self.x + self.px)

    @property
    def faint(self):
        return float(self.outline.sum()) < FAINT * self.px**2


def _places(scene, ideal, ground):
    height, width = ideal.shape[:2]
    boxes = [compose.slot_box(slot, width, height) for slot, _ in scene.objects]
    ys, xs = np.mgrid[0:height, 0:width]
    owner = np.argmin([np.hypot(xs - x - px / 2, ys - y - px / 2) for x, y, px in boxes], 0)
    out = []
    for i, ((x, y, px), (_, thing)) in enumerate(zip(boxes, scene.objects, strict=True)):
        place = _Place(x, y, px, thing, np.zeros((height, width), np.float32), owner == i)
        place.outline[place.box] = outline(ideal, ground)[place.box]
        out.append(place)
    return out


def _free(places, margin):
    """Pixels that no object should touch."""
    free = np.ones_like(places[0].mine)
    for p in places:
        x, y = max(0, p.x - margin), max(0, p.y - margin)
        free[y : p.y + p.px + margin, x : p.x + p.px + margin] = False
    return free


class Checker:
    """Judges pictures of any size against entries of the prompt list."""

    def __init__(self, sprites):
        self.sprites = sprites
        self.nearest = NearestSprite(sprites, _PALETTE)
        self.names = world.sprite_names()

    def __call__(self, entry, picture):
        """The Verdict on a picture, uint8 [height, width, 3]."""
        height, width = picture.shape[:2]
        ideal = entry.ideal(self.sprites, width, height)
        verdict = Verdict(psnr=psnr(picture, ideal))
        true_ground = compose.background(entry.scene.background, width, height)[:, 0]
        places = _places(entry.scene, ideal, true_ground)
        free = _free(places, max(1, min(width, height) // 64))
        ground, rms = fit_background(picture, free)
        seen = outline(picture, ground)
        self._background(verdict, entry.scene.background, ground, rms)
        self._count(verdict, places, seen, free)
        for p in places:
            self._place(verdict, p, seen)
            self._color(verdict, p, picture, ideal)
            self._identity(verdict, p, places, picture, ground)
        return verdict

    @staticmethod
    def _background(verdict, colors, ground, rms):
        if rms > BACKGROUND_RMS:
            verdict.fail("color", f"background is neither plain nor a gradient (rms {rms:.0f})")
        for end, rgb, asked in (("top", ground[0], colors[0]), ("bottom", ground[-1], colors[-1])):
            name, distance = nearest_color(rgb)
            if name != asked or distance > COLOR_DISTANCE:
                verdict.fail("color", f"background is {name} at the {end}, not {asked}")

    @staticmethod
    def _count(verdict, places, seen, free):
        """Objects by outline; then parts that join two of them, or that belong to none."""
        seen, free = coarse(seen), coarse(free.astype(np.float32)) > 0.5
        mine = np.stack([coarse(p.mine.astype(np.float32)) > 0.5 for p in places])
        ideal = [coarse(p.outline) for p in places]
        found = [
            p.faint or recentred_overlap(seen * m, i) >= OVERLAP
            for p, m, i in zip(places, mine, ideal, strict=True)
        ]
        joined, separate = 0, [[] for _ in places]
        for part in blobs(seen):
            share = (mine & part).sum((1, 2)) / part.sum()
            joined += max(0, int((share > SHARE).sum()) - 1)
            separate[int(share.argmax())].append((int(part.sum()), (part & free).sum()))
        smallest = min(
            (i.sum() for p, i in zip(places, ideal, strict=True) if not p.faint),
            default=FAINT * ideal[0].size,
        )
        extra = 0
        for p, parts in zip(places, separate, strict=True):
            # The largest part is the object itself, which may stand beside its place.
            rest = sorted(parts, reverse=True)[0 if p.faint else 1 :]
            extra += sum(n >= EXTRA * smallest and outside > n / 2 for n, outside in rest)
        verdict.objects = sum(found) - joined + extra
        if not all(found) or joined or extra:
            note = f"{found.count(False)} missing, {joined} joined, {extra} too many"
            verdict.fail("count", note)

    def _place(self, verdict, place, seen):
        if place.faint:
            return
        here = seen * place.mine
        if here.sum() < 0.1 * place.outline.sum():
            verdict.fail("place", f"nothing where the {self._name(place.thing)} should be")
            return
        (x, y, spread), (tx, ty, true) = map(centre_and_spread, (here, place.outline))
        off, ratio = np.hypot(x - tx, y - ty) / min(seen.shape), spread / true
        if off > CENTRE or not 1 / SPREAD < ratio < SPREAD:
            note = f"{self._name(place.thing)} is {off:.0%} of the side away"
            verdict.fail("place", f"{note} and {ratio:.0%} of its size")

    def _color(self, verdict, place, picture, ideal):
        alpha = self.sprites.at(place.thing.sprite, place.px)[..., 3] / 255.0
        crop, true = (a[place.box].astype(np.float32) for a in (picture, ideal))
        asked = place.thing.color
        if asked:
            name, distance = nearest_color(np.median(crop[alpha > 0.99], 0))
            if name != asked or distance > COLOR_DISTANCE:
                verdict.fail("color", f"{self._name(place.thing)} is {name}")
            return
        mean, true = (np.average(c.reshape(-1, 3), 0, alpha.ravel()) for c in (crop, true))
        distance = float(np.linalg.norm(mean - true))
        if distance > EMOJI_COLOR_DISTANCE:
            verdict.fail("color", f"{self._name(place.thing)} is {distance:.0f} levels off")

    def _identity(self, verdict, place, places, picture, ground):
        """Nearest of all sprites; and among the prompt's own objects, for a swap."""
        crop, rows = picture[place.box], ground[place.box[0]]
        found = self.nearest(crop, rows)
        if found == place.thing.sprite:
            return
        note = f"looks like {self.names[found]}, not {self._name(place.thing)}"
        verdict.fail("identity", note)
        # A rival may wear any colour: exchanged colours are not exchanged objects.
        rivals = list({p.thing.sprite: p.thing for p in places}.values())
        errors = [
            (self.nearest.shape_error if t.color else self.nearest.error)(crop, rows, t.sprite)
            for t in rivals
        ]
        best = rivals[int(np.argmin(errors))]
        if best.sprite != place.thing.sprite:
            note = f"{self._name(best)} stands where the {self._name(place.thing)} should"
            verdict.fail("place", note)

    def _name(self, thing):
        name = self.names[thing.sprite]
        return f"{thing.color} {name}" if thing.color else name
