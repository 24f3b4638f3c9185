# SPDX-License-Identifier: Apache-2.0
"""The ideal picture of a scene, drawn with NumPy: what a perfect model would return."""

import numpy as np

from . import scenes, words


def slot_box(slot, width, height):
    """(x0, y0, px): where a slot's square sprite lies in a picture."""
    cx, cy, size = scenes.SLOTS[slot]
    px = int(size * min(width, height) + 0.5)
    return int(cx * width - px / 2 + 0.5), int(cy * height - px / 2 + 0.5), px


def background(colors, width, height):
    """float32 [height, width, 3] in 0..255: plain, or a vertical gradient between two colours."""
    a = np.array(words.COLORS[colors[0]], np.float32)
    b = np.array(words.COLORS[colors[-1]], np.float32)
    t = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None, None]
    return np.broadcast_to(a + (b - a) * t, (height, width, 3)).copy()


def compose(scene, sprites, width=256, height=256):
    """uint8 [height, width, 3]. `sprites` is a sprites.Sprites."""
    out = background(scene.background, width, height)
    for slot, thing in scene.objects:
        x, y, px = slot_box(slot, width, height)
        s = sprites.at(thing.sprite, px).astype(np.float32)
        tint = np.array(words.COLORS[thing.color], np.float32) / 255 if thing.color else 1.0
        view = out[y : y + px, x : x + px]
        view *= 1 - s[..., 3:] / 255
        view += s[..., :3] * tint
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)
