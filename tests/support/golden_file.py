# SPDX-License-Identifier: Apache-2.0
"""Golden files: a reference run boiled down to what fits into a repository.

One .npz for each case:
  meta      JSON bytes: the case, versions, the checkpoint's digest, and for each array its shape,
            L2 norm and place in `values`
  values    float32: up to SAMPLES values of each array, one from each of as many equal pieces
  sketch    float32 (arrays, SKETCHES): sums of the whole array under random signs, over the norm
  image     uint8 (H * W, 3), when the case keeps its picture
  full_*    float32, arrays kept whole

The samples locate an error; the sketch sees the whole array. For an error e and random signs s,
the mean of (s . e)^2 is |e|^2, so 32 sums give the L2 error within about a quarter of itself,
also where no sample lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support import rawrandom

SAMPLES = 1024
SKETCHES = 32


def positions(size: int, count: int) -> np.ndarray:
    """`count` increasing positions below `size`, one drawn from each of `count` equal pieces."""
    if count >= size:
        return np.arange(size)
    edges = np.arange(count + 1, dtype=np.int64) * size // count
    draw = rawrandom.words(0, f"positions/{size}/{count}", count)
    return edges[:-1] + (draw % np.diff(edges).astype(np.uint64)).astype(np.int64)


def sketch(name: str, flat: np.ndarray, count: int = SKETCHES) -> np.ndarray:
    """float64: `count` sums of `flat` under random signs that depend on the name."""
    wide = flat.astype(np.float64)
    return np.array(
        [wide @ rawrandom.signs(i, f"sketch/{name}", wide.size) for i in range(count)], np.float64
    )


def noise_hash(noise: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(noise, "<f4").tobytes()).hexdigest()


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """|got - want| / |want| in float64; a wrong value where all should be zero is infinite."""
    difference = np.linalg.norm(got.astype(np.float64) - want.astype(np.float64))
    scale = np.linalg.norm(want.astype(np.float64))
    if not np.isfinite(difference):
        return float("inf")
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float(difference / scale)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """What the engine's probe wrote: FOLDER/<name>.npy by name."""
    return {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}


def save(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    meta: dict,
    image: np.ndarray | None = None,
    full: tuple[str, ...] = (),
) -> None:
    """Write the golden file of `arrays` (each rows x columns)."""
    table, values, sketches = {}, [], []
    offset = 0
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        picked = flat[positions(flat.size, SAMPLES)]
        norm = float(np.linalg.norm(flat.astype(np.float64)))
        table[name] = {"shape": list(array.shape), "norm": norm, "at": offset, "n": picked.size}
        offset += picked.size
        values.append(picked)
        sketches.append(sketch(name, flat) / (norm or 1.0))
    if "noise" in arrays:
        meta = meta | {"noise_sha256": noise_hash(arrays["noise"])}
    text = json.dumps(meta | {"arrays": table}, sort_keys=True, ensure_ascii=False)
    members = {
        "meta": np.frombuffer(text.encode(), np.uint8),
        "values": np.concatenate(values),
        "sketch": np.array(sketches, np.float32),
    }
    members |= {f"full_{name}": np.asarray(arrays[name], np.float32) for name in full}
    if image is not None:
        members["image"] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **members)


@dataclass(frozen=True)
class StageError:
    """How far one array is from its golden, with the worst sample for the message."""

    name: str
    samples: float  # relative L2 error of the sampled values
    whole: float  # the same of the whole array, estimated from the sketch
    norm: float  # relative error of the L2 norm
    detail: str

    @property
    def worst(self) -> float:
        return max(self.samples, self.whole, self.norm)

    def __str__(self) -> str:
        return (
            f"{self.name}: samples {self.samples:.2e}, whole {self.whole:.2e}, "
            f"norm {self.norm:.2e} ({self.detail})"
        )


def fit(name: str, got: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`got` as rows x columns of `shape`; pixels may also come as (channels, rows, columns)."""
    got = np.asarray(got)
    while got.ndim > 2 and got.shape[0] == 1:
        got = got[0]
    if got.shape == shape:
        return got
    if got.ndim == 1 and 1 in shape and got.size == shape[0] * shape[1]:
        return got.reshape(shape)
    if got.ndim == 3 and got.shape[0] == shape[1] and got[0].size == shape[0]:
        return got.reshape(shape[1], shape[0]).T
    if got.ndim == 3 and got.shape[2] == shape[1] and got.size == shape[0] * shape[1]:
        return got.reshape(shape)
    raise ValueError(f"{name}: shape {got.shape}, expected {shape[0]} rows x {shape[1]} columns")


class Golden:
    """A golden file, opened for comparison."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as data:
            self._members = {name: data[name] for name in data.files}
        self.meta: dict = json.loads(self._members["meta"].tobytes().decode())
        table = self.meta["arrays"].items()
        # In the order of the pipeline, which is also the order of the rows of `sketch`.
        self.table: dict[str, dict] = dict(sorted(table, key=lambda item: item[1]["at"]))
        self._row = {name: i for i, name in enumerate(self.table)}

    @property
    def image(self) -> np.ndarray | None:
        return self._members.get("image")

    def full(self, name: str) -> np.ndarray:
        return self._members[f"full_{name}"]

    def shape(self, name: str) -> tuple[int, int]:
        rows, columns = self.table[name]["shape"]
        return rows, columns

    def values(self, name: str) -> np.ndarray:
        """The stored samples of an array: all of it, in order, when it is small."""
        entry = self.table[name]
        return self._members["values"][entry["at"] : entry["at"] + entry["n"]]

    def compare(self, name: str, got: np.ndarray) -> StageError:
        got = fit(name, got, self.shape(name))
        flat = np.ascontiguousarray(got, np.float32).reshape(-1)
        entry, want = self.table[name], self.values(name)
        at = positions(flat.size, SAMPLES)
        picked = flat[at]
        gap = np.abs(picked.astype(np.float64) - want)
        worst = int(np.argmax(np.nan_to_num(gap, nan=np.inf)))
        row, column = divmod(int(at[worst]), got.shape[1])
        detail = f"worst at [{row}, {column}]: {picked[worst]:.7g}, expected {want[worst]:.7g}"
        norm = float(np.linalg.norm(flat.astype(np.float64)))
        scale = entry["norm"] or 1.0
        stored = self._members["sketch"][self._row[name]].astype(np.float64)
        drift = sketch(name, flat) / scale - stored
        whole = float(np.sqrt(np.mean(drift**2)))
        return StageError(
            name,
            relative_error(picked, want),
            whole if np.isfinite(whole) else float("inf"),
            abs(norm - entry["norm"]) / scale if np.isfinite(norm) else float("inf"),
            detail,
        )
