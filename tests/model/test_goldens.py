# SPDX-License-Identifier: Apache-2.0
"""The engine against the committed goldens: checkpoint -> convert.py -> engine, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support import checkpoint as checkpoint_maker
from support import goldens, native
from support.cases import ALL_CASES, FAST_CASES, STAGE_CASES, Case
from support.golden_file import Golden, noise_hash, read_arrays, relative_error

DEVICE = native.device_under_test()
EXACT_LIMIT = 1e-4  # relative L2 error of every stage in exact precision
VAE_LIMIT = EXACT_LIMIT if DEVICE == "cpu" else 1e-3  # GPUs convolve factors of 16 bits
PIXEL_SHARE = 0.999  # of the picture's values within one grey level
# Over the error of the reference run in bf16; a GPU rounds more at once.
FAST_FACTOR = 1.3 if DEVICE == "cpu" else 1.6

by_name = pytest.mark.parametrize("case", STAGE_CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def exact_run(converted, bonsai_probe, tmp_path_factory) -> Callable[[Case], Path]:
    """exact_run(case) -> folder with the arrays of one run in exact precision, made once."""
    folders: dict[str, Path] = {}

    def run(case: Case) -> Path:
        if case.name not in folders:
            folder = tmp_path_factory.mktemp(case.name)
            native.probe(bonsai_probe, converted(case.recipe), case, folder)
            folders[case.name] = folder
        return folders[case.name]

    return run


@pytest.fixture(scope="module", params=FAST_CASES, ids=lambda case: case.name)
def fast_case(request, release) -> Iterator[Case]:
    """The fast cases one after the other; the models are large, so each is removed after use."""
    yield request.param
    release(request.param.recipe)


def limit_of(stage: str) -> float:
    return VAE_LIMIT if stage.startswith("vae_") else EXACT_LIMIT


def assert_close(golden: Golden, got: dict[str, np.ndarray]) -> None:
    """Every array of the golden file; the message lists the bad stages in the pipeline's order."""
    errors = goldens.check_stages(golden, got)
    if DEVICE != "cpu":  # a decoder that works in strips never holds some levels whole
        errors = [e for e in errors if e.name in got or not e.name.startswith("vae_up")]
    bad = [str(e) for e in errors if not e.worst <= limit_of(e.name)]
    assert not bad, f"too far off in {len(bad)} of {len(errors)} stages:\n" + "\n".join(bad)


def assert_same_picture(golden: Golden, got: dict[str, np.ndarray]) -> None:
    share = goldens.pixel_agreement(got["image_uint8"], golden.image)
    assert share >= PIXEL_SHARE, f"{100 * share:.3f} % of the values are within one level"


@by_name
def test_checkpoint_is_the_golden_one(case: Case, checkpoint) -> None:
    """A difference here means that all further comparisons of the case are void."""
    assert checkpoint_maker.digest(checkpoint(case.recipe)) == goldens.load(case).meta["checkpoint"]


@by_name
def test_exact_stages(case: Case, exact_run) -> None:
    golden, got = goldens.load(case), read_arrays(exact_run(case))
    assert_close(golden, got)
    assert_same_picture(golden, got)


@by_name
def test_token_ids(case: Case, exact_run) -> None:
    """Ids have to be equal, not just close."""
    goldens.check_ids(goldens.load(case), read_arrays(exact_run(case)))


@by_name
def test_noise_bits(case: Case, exact_run) -> None:
    """Noise equal to torch's bit for bit, by its hash."""
    golden = goldens.load(case)
    got = np.load(exact_run(case) / "noise.npy").reshape(golden.shape("noise"))
    assert noise_hash(got) == golden.meta["noise_sha256"]


def test_exact_stages_without_simd(converted, bonsai_probe, tmp_path) -> None:
    """The plain kernels, which a processor without AVX2 runs."""
    case = ALL_CASES["odd-mixed"]
    model = converted(case.recipe)
    got = native.probe(bonsai_probe, model, case, tmp_path, BONSAI_CPU="generic")
    assert_close(goldens.load(case), got)
    assert_same_picture(goldens.load(case), got)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_thread_count_does_not_matter(precision, converted, bonsai_probe, tmp_path) -> None:
    case = ALL_CASES["odd-long"] if precision == "exact" else ALL_CASES["ternary-empty"]
    model = converted(case.recipe)
    runs = [
        native.probe(bonsai_probe, model, case, tmp_path / str(n), precision, threads=n)
        for n in (1, 3)
    ]
    assert runs[0].keys() == runs[1].keys()
    different = [name for name in runs[0] if not np.array_equal(runs[0][name], runs[1][name])]
    assert not different, f"1 and 3 threads differ in {different}"


def test_fast_error_against_bf16(fast_case: Case, converted, bonsai_probe, tmp_path) -> None:
    """Fast velocity error of step 0 at most so many times that of the reference run in bf16."""
    golden = goldens.load(fast_case)
    model = converted(fast_case.recipe)
    got = native.probe(bonsai_probe, model, fast_case, tmp_path, "fast")
    truth = golden.full("velocity_0")
    error = relative_error(got["velocity_0"].reshape(truth.shape), truth)
    allowed = FAST_FACTOR * golden.meta["bf16_errors"]["velocity_0"]
    assert error <= allowed, f"velocity error {error:.3e}, allowed {allowed:.3e}"
    # An engine that ignored --precision would pass, too: int8 activations have to show.
    assert error > 1e-4, f"velocity error {error:.3e} is that of exact precision"


def test_exact_from_bf16_noise(fast_case: Case, converted, bonsai_probe, tmp_path) -> None:
    golden = goldens.load(fast_case)
    got = native.probe(bonsai_probe, converted(fast_case.recipe), fast_case, tmp_path)
    assert noise_hash(got["noise"].reshape(golden.shape("noise"))) == golden.meta["noise_sha256"]
    goldens.check_ids(golden, got)
    assert_close(golden, got)
