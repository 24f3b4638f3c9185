# SPDX-License-Identifier: Apache-2.0
"""Background and outlines of a picture: what of it is object, and how many objects."""

import numpy as np

# Ramp from background to object in sRGB levels, so that a slightly noisy background does not count
# as object and a faint rim does not decide an outline.
DIFFERENCE = (14.0, 54.0)
GRID = 64  # outlines are compared at about this many cells along the shorter side


def fit_background(picture, free):
    """(float32 [height, 3], rms): a line from top to bottom through the median of each row.

    `free` masks the pixels that no object should touch. Rows far off are left out once, so that an
    object where none should be does not bend the line.
    """
    height = len(picture)
    rows = np.flatnonzero(free.sum(1) >= 4)
    median = np.array([np.median(picture[r][free[r]], 0) for r in rows], np.float64)
    t = (np.arange(height) + 0.5) / height
    basis, keep = np.stack([np.ones(height), t], 1), np.ones(len(rows), bool)
    for _ in range(2):
        line = np.linalg.lstsq(basis[rows[keep]], median[keep], rcond=None)[0]
        off = np.abs(basis[rows] @ line - median).max(1)
        keep = off <= max(12.0, 2.0 * float(np.median(off)))
    return (basis @ line).astype(np.float32), float(np.sqrt(np.mean(off**2)))


def outline(picture, ground):
    """float32 [height, width], 0..1: how surely a pixel is not the background `ground` [height, 3].

    Takes the channel that differs most.
    """
    low, high = DIFFERENCE
    d = np.abs(picture.astype(np.float32) - ground[:, None]).max(2)
    return np.clip((d - low) / (high - low), 0, 1)


def coarse(mask):
    """A mask as means over square cells, about GRID of them along the shorter side.

    Comparing these forgives thin lines that are off by a pixel or two.
    """
    cell = max(1, min(mask.shape) // GRID)
    h, w = (s // cell for s in mask.shape)
    return mask[: h * cell, : w * cell].reshape(h, cell, w, cell).mean((1, 3))


def centre_and_spread(mask):
    """(x, y, spread): the weighted mean position and the root mean square distance from it."""
    total = float(mask.sum())
    xs, ys = np.arange(mask.shape[1]), np.arange(mask.shape[0])
    across, down = mask.sum(0) / total, mask.sum(1) / total
    x, y = float(across @ xs), float(down @ ys)
    return x, y, float(np.sqrt(across @ (xs - x) ** 2 + down @ (ys - y) ** 2))


def recentred_overlap(seen, ideal):
    """Soft intersection over union once `seen` is shifted so that the centres agree."""
    if seen.sum() < 0.1 * ideal.sum():
        return 0.0
    (x, y, _), (tx, ty, _) = centre_and_spread(seen), centre_and_spread(ideal)
    seen = np.roll(seen, (round(ty - y), round(tx - x)), (0, 1))
    return float(np.minimum(seen, ideal).sum() / np.maximum(seen, ideal).sum())


def blobs(mask):
    """Connected parts (also over corners) of the cells above one half, as boolean masks."""
    todo = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask > 0.5), strict=True)}
    out = []
    while todo:
        part = np.zeros(mask.shape, bool)
        stack = [todo.pop()]
        while stack:
            y, x = stack.pop()
            part[y, x] = True
            for n in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if n in todo:
                    todo.remove(n)
                    stack.append(n)
        out.append(part)
    return out
