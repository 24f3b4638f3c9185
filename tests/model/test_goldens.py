# SPDX-License-Identifier: Apache-2.0
"""The engine against the committed goldens: checkpoint -> convert.py -> engine, stage by stage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import checkpoint as checkpoint_maker
from support import goldens, native
from support.cases import ALL_CASES, FAST_CASES, STAGE_CASES, Case
from support.golden_file import noise_hash, relative_error

EXACT_LIMIT = 1e-4  # relative L2 error of every stage in exact precision
PIXEL_SHARE = 0.999  # of the picture's values within one grey level
FAST_FACTOR = 1.3  # over the error of the reference run in bf16

by_name = pytest.mark.parametrize("case", STAGE_CASES, ids=lambda case: case.name)
by_fast_name = pytest.mark.parametrize("case", FAST_CASES, ids=lambda case: case.name)


def check_stages(case: Case, got: dict[str, np.ndarray]) -> None:
    """Every array of the golden file, then the picture; the message lists the stages in order."""
    golden = goldens.load(case)
    missing = [name for name in golden.table if name not in got and goldens.required(name)]
    assert not missing, f"the probe wrote no {', '.join(missing)}"
    errors = [golden.compare(name, got[name]) for name in golden.table if name in got]
    bad = [str(error) for error in errors if not error.worst <= EXACT_LIMIT]
    assert not bad, f"over {EXACT_LIMIT:g} in {len(bad)} of {len(errors)} stages:\n" + "\n".join(
        bad
    )
    share = goldens.pixel_agreement(got["image_uint8"], golden.image)
    assert share >= PIXEL_SHARE, f"{100 * share:.3f} % of the values are within one level"


@by_name
def test_checkpoint_is_the_golden_one(case: Case, checkpoint) -> None:
    """A difference here means that all further comparisons of the case are void."""
    assert checkpoint_maker.digest(checkpoint(case.recipe)) == goldens.load(case).meta["checkpoint"]


@by_name
def test_exact_stages(case: Case, converted, bonsai_probe, tmp_path) -> None:
    check_stages(case, native.probe(bonsai_probe, converted(case.recipe), case, tmp_path))


def test_exact_stages_without_simd(converted, bonsai_probe, tmp_path) -> None:
    """The plain kernels, which a processor without AVX2 runs."""
    case = ALL_CASES["odd-mixed"]
    model = converted(case.recipe)
    check_stages(case, native.probe(bonsai_probe, model, case, tmp_path, BONSAI_CPU="generic"))


@by_name
def test_token_ids(case: Case, converted, bonsai_probe, tmp_path) -> None:
    """Ids and mask are stored whole up to 1,024 and have to be equal, not just close."""
    golden = goldens.load(case)
    got = native.probe(bonsai_probe, converted(case.recipe), replace(case, steps=1), tmp_path)
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(got[name].reshape(-1), golden.values(name))


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


@by_fast_name
def test_fast_error_against_bf16(case: Case, converted, bonsai_probe, tmp_path) -> None:
    """Fast velocity error of step 0 at most 1.3 times that of the reference run in bf16."""
    golden = goldens.load(case)
    got = native.probe(bonsai_probe, converted(case.recipe), case, tmp_path, "fast")
    truth = golden.full("velocity_0")
    error = relative_error(got["velocity_0"].reshape(truth.shape), truth)
    allowed = FAST_FACTOR * golden.meta["bf16_errors"]["velocity_0"]
    assert error <= allowed, f"velocity error {error:.3e}, allowed {allowed:.3e}"
    # An engine that ignored --precision would pass, too: int8 activations have to show.
    assert error > 1e-5, f"velocity error {error:.3e} is that of exact precision"


@by_fast_name
def test_exact_from_bf16_noise(case: Case, converted, bonsai_probe, tmp_path) -> None:
    golden = goldens.load(case)
    got = native.probe(bonsai_probe, converted(case.recipe), case, tmp_path, "exact")
    assert noise_hash(got["noise"].reshape(golden.shape("noise"))) == golden.meta["noise_sha256"]
    errors = [golden.compare(name, got[name]) for name in golden.table]
    bad = [str(error) for error in errors if not error.worst <= EXACT_LIMIT]
    assert not bad, "\n".join(bad)


@by_name
def test_noise_bits(case: Case, converted, bonsai_probe, tmp_path) -> None:
    """Noise equal to torch's bit for bit, by its hash."""
    golden = goldens.load(case)
    got = native.probe(bonsai_probe, converted(case.recipe), replace(case, steps=1), tmp_path)
    assert noise_hash(got["noise"].reshape(golden.shape("noise"))) == golden.meta["noise_sha256"]
