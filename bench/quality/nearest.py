# SPDX-License-Identifier: Apache-2.0
"""Which sprite is drawn here? Compares a crop with every sprite drawn on the same background."""

import numpy as np
from PIL import Image
from seedling import words

COARSE = 24  # pixels: all candidates are compared at this size
SHORTLIST = 16  # the best of them again at full size


def shrink(rgb):
    """[n, n, 3] to float32 [COARSE, COARSE, 3], each pixel the mean of its area."""
    planes = [
        Image.fromarray(np.ascontiguousarray(rgb[..., c], np.float32)).resize(
            (COARSE, COARSE), Image.BOX
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(p) for p in planes], -1)


class NearestSprite:
    """Candidates are all emoji, and each shape in every colour of the table."""

    def __init__(self, sprites, palette):
        self.sprites, self.palette = sprites, palette / 255.0
        shapes = len(words.SHAPE_NAMES)
        emoji = len(sprites) - shapes
        self.candidates = [(i, None) for i in range(emoji)] + [
            (emoji + s, c) for s in range(shapes) for c in range(len(palette))
        ]
        flat = np.stack([self._small(i) for i in range(len(sprites))])
        color = np.concatenate(
            [flat[:emoji, ..., :3]]
            + [
                flat[i, None, ..., :3] * self.palette[:, None, None]
                for i in range(emoji, len(flat))
            ]
        )
        alpha = flat[[i for i, _ in self.candidates], ..., 3] / 255.0
        # With ground g (the same along a row) and crop c, d = g - c, the squared error of the
        # candidate s + (1 - a) g is |d|^2 + 2 d.s - 2 (d g).a + |s|^2 - 2 (s a).g + (a a).(g g).
        n = len(self.candidates)
        self.color, self.alpha = color.reshape(n, -1), alpha.reshape(n, -1)
        self.color_squared = (self.color**2).sum(1)
        self.color_alpha = (color * alpha[..., None]).sum(2).reshape(n, -1)  # [n, rows * 3]
        self.alpha_squared = (alpha**2).sum(2)  # [n, rows]

    def _small(self, i):
        image = self.sprites.base[i].resize((COARSE, COARSE), Image.BICUBIC)
        small = np.asarray(image).astype(np.float32)
        small[..., :3] = np.minimum(small[..., :3], small[..., 3:])
        return small

    def _sprite(self, index, ground, px):
        """(what shows of the ground, colour, alpha [px, px, 1]) of a sprite on ground [px, 3]."""
        s = self.sprites.at(index, px).astype(np.float32)
        alpha = s[..., 3:] / 255.0
        return ground[:, None] * (1 - alpha), s[..., :3], alpha

    def error(self, crop, ground, sprite, color=None):
        """Mean squared difference of `crop` [n, n, 3] from a sprite; `color` is a palette index."""
        rest, own, _ = self._sprite(sprite, ground, len(crop))
        tint = 1.0 if color is None else self.palette[color]
        return float(np.mean((rest + own * tint - crop) ** 2))

    def shape_error(self, crop, ground, sprite):
        """The same for a shape in the one colour that fits best."""
        rest, _, alpha = self._sprite(sprite, ground, len(crop))
        tint = (alpha * (crop - rest)).sum((0, 1)) / (alpha**2).sum()
        return float(np.mean((rest + alpha * tint - crop) ** 2))

    def __call__(self, crop, ground):
        """Index of the nearest sprite. crop: [n, n, 3]; ground: [n, 3], the background's rows."""
        small = shrink(crop)
        rows = shrink(np.broadcast_to(ground[:, None], crop.shape))[:, 0]
        d = rows[:, None] - small
        error = 2 * (self.color @ d.ravel()) + self.color_squared
        error -= 2 * (self.alpha @ (d * rows[:, None]).sum(2).ravel())
        error -= 2 * (self.color_alpha @ rows.ravel())
        error += self.alpha_squared @ (rows**2).sum(1)
        best = np.argsort(error, kind="stable")[:SHORTLIST]
        errors = [self.error(crop, ground, *self.candidates[i]) for i in best]
        return self.candidates[best[int(np.argmin(errors))]][0]
