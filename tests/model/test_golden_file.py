# SPDX-License-Identifier: Apache-2.0
"""A golden file has to notice what goes wrong in an engine: these tests break arrays on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from support import rawrandom
from support.golden_file import SAMPLES, Golden, fit, positions, save


@pytest.fixture
def array() -> np.ndarray:
    return rawrandom.bell(5, "array", 700 * 96).astype(np.float32).reshape(700, 96)


@pytest.fixture
def golden(array, tmp_path) -> Golden:
    small = np.arange(12, dtype=np.float32).reshape(1, 12)
    save(tmp_path / "g.npz", {"x": array, "small": small}, {"case": "none"}, full=("small",))
    return Golden(tmp_path / "g.npz")


def test_equal_arrays_agree(golden, array) -> None:
    assert golden.compare("x", array).worst < 1e-6
    np.testing.assert_array_equal(golden.values("small"), np.arange(12))
    np.testing.assert_array_equal(golden.full("small"), np.arange(12).reshape(1, 12))


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_error_of_the_whole_array_is_measured(golden, array, size) -> None:
    error = rawrandom.bell(6, "error", array.size).astype(np.float32).reshape(array.shape)
    measured = golden.compare("x", array + size * error)
    assert measured.samples == pytest.approx(size, rel=0.15)
    assert measured.whole == pytest.approx(size, rel=0.5)


def test_one_wrong_value_between_the_samples_shows(golden, array) -> None:
    free = np.setdiff1d(np.arange(array.size), positions(array.size, SAMPLES))[1234]
    broken = array.copy()
    broken.reshape(-1)[free] += 3.0
    measured = golden.compare("x", broken)
    assert measured.samples < 1e-6
    assert measured.whole == pytest.approx(3.0 / np.linalg.norm(array), rel=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_is_an_infinite_error(golden, array, value) -> None:
    broken = array.copy()
    broken[3, 7] = value
    assert golden.compare("x", broken).worst == np.inf


def test_swapped_rows_show(golden, array) -> None:
    swapped = array.copy()
    swapped[[10, 11]] = swapped[[11, 10]]
    assert golden.compare("x", swapped).worst > 1e-2


def test_layouts(array) -> None:
    np.testing.assert_array_equal(fit("x", array[None], array.shape), array)
    planes = array.T.reshape(96, 35, 20)  # channels, rows, columns
    np.testing.assert_array_equal(fit("x", planes, array.shape), array)
    np.testing.assert_array_equal(fit("x", array.reshape(35, 20, 96), array.shape), array)
    np.testing.assert_array_equal(fit("x", np.arange(9), (1, 9)), np.arange(9).reshape(1, 9))
    with pytest.raises(ValueError, match=r"x: shape \(96, 700\), expected 700 rows x 96"):
        fit("x", array.T, array.shape)


def test_random_numbers_are_those_of_the_committed_files() -> None:
    """Changing the generator would silently void every golden file."""
    assert rawrandom.words(1, "a", 2).tolist() == [14453184547913189804, 15432556543445800417]
    assert positions(10**6, 4).tolist() == [20121, 398388, 646968, 824714]
