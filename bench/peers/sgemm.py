# SPDX-License-Identifier: Apache-2.0
"""Seconds of numpy's single-precision matrix product: python sgemm.py THREADS MxKxN [...]

Prints JSON: the library, and for each shape seconds of the clock and of the processor. A process
of its own, since the library reads its number of threads when it is loaded.
"""

import json
import os
import sys
import time

LEAST_SECONDS = 0.3  # of one shape, so that small ones are measured, too
THREADS, SHAPES = sys.argv[1], sys.argv[2:]
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = THREADS
os.environ["MKL_NUM_THREADS"] = THREADS

import numpy as np  # noqa: E402


def library() -> str:
    try:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"numpy {np.__version__}, {blas['name']} {blas['version']}"
    except (KeyError, TypeError):
        return f"numpy {np.__version__}"


def measure(m: int, k: int, n: int) -> tuple[float, float]:
    random = np.random.default_rng(1)
    a = random.random((m, k), dtype=np.float32)
    b = random.random((k, n), dtype=np.float32)
    a[:64] @ b  # wakes the threads
    wall, cpu, count = time.monotonic(), time.process_time(), 0
    while count == 0 or time.monotonic() - wall < LEAST_SECONDS:
        a @ b
        count += 1
    return (time.monotonic() - wall) / count, (time.process_time() - cpu) / count


if __name__ == "__main__":
    found = {shape: measure(*map(int, shape.split("x"))) for shape in SHAPES}
    print(json.dumps({"library": library(), "seconds": found}))
