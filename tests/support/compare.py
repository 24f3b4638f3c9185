# SPDX-License-Identifier: Apache-2.0
"""Prints how far an engine run is from a reference run, array by array.

    python tests/support/compare.py dump.npz DIR

dump.npz: from reference.py; DIR: what bonsai-probe --out DIR wrote. Relative L2 error, largest
difference, and for the picture the PSNR in dB and the share of bytes within one level.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def describe(name: str, found: np.ndarray, expected: np.ndarray) -> str:
    difference = found.astype(np.float64) - expected.astype(np.float64)
    scale = np.linalg.norm(expected.astype(np.float64)) or 1.0
    line = f"{name:24s} relative L2 {np.linalg.norm(difference) / scale:.3e}"
    line += f"  largest {np.abs(difference).max():.3e}"
    if name == "image_uint8":
        mean_square = np.mean(difference**2)
        psnr = 10 * np.log10(255**2 / mean_square) if mean_square else np.inf
        within = np.mean(np.abs(difference) <= 1)
        line += f"  PSNR {psnr:.2f} dB  within one level {within:.4%}"
    return line


def main(dump: str, folder: str) -> int:
    with np.load(dump) as reference:
        for name in reference.files:
            path = Path(folder) / f"{name}.npy"
            if not path.is_file():
                continue
            expected, found = reference[name], np.load(path)
            if found.size != expected.size:
                print(f"{name:24s} {found.shape} here, {expected.shape} in the reference")
                continue
            print(describe(name, found.reshape(expected.shape), expected))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
