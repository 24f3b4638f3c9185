# SPDX-License-Identifier: Apache-2.0
"""The committed goldens against the live reference, so that they cannot go stale.

Needs the exact versions in support/reference.py; CI installs them, other places may skip.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import goldens, native, reference
from support.cases import ALL_CASES, Case

LIMIT = 2e-5  # another machine adds up in another order

pytestmark = pytest.mark.skipif(
    reference.unavailable() is not None, reason=f"live reference: {reference.unavailable()}"
)


@pytest.mark.parametrize("name", ["ternary-long", "binary-mixed", "odd-mixed", "decoder-mixed"])
def test_goldens_are_what_the_reference_computes(name: str, checkpoint) -> None:
    case = ALL_CASES[name]
    golden = goldens.load(case)
    arrays = reference.run(checkpoint(case.recipe), goldens.options_of(case))
    image = arrays.pop("image_uint8")
    assert arrays.keys() == golden.table.keys()
    errors = [golden.compare(key, value) for key, value in arrays.items()]
    bad = [str(error) for error in errors if not error.worst <= LIMIT]
    assert not bad, "\n".join(bad)
    assert goldens.pixel_agreement(image, golden.image) >= 0.9999


@pytest.mark.parametrize("name", ["fast-tiny-ternary-0", "fast-tiny-binary-3000"])
def test_bf16_error_is_what_the_reference_has(name: str, checkpoint) -> None:
    case = ALL_CASES[name]
    golden = goldens.load(case)
    folder = checkpoint(case.recipe)
    truth = reference.run(folder, goldens.options_of(case))
    assert golden.compare("velocity_0", truth["velocity_0"]).worst <= LIMIT
    errors = goldens.reference_errors(folder, case, truth)
    # Which products a processor rounds to bf16 differs a little.
    assert errors["velocity_0"] == pytest.approx(golden.meta["bf16_errors"]["velocity_0"], rel=0.1)


@pytest.mark.parametrize("noise_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**64 - 1])
@pytest.mark.parametrize("size", [(64, 64), (144, 80)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_noise_is_torch_bit_for_bit(
    size, seed, noise_dtype, converted, bonsai_probe, tmp_path
) -> None:
    if reference.torch_level() == "DEFAULT":
        pytest.skip("without AVX2 torch takes sine and cosine from libm: other last bits")
    base = ALL_CASES["odd-empty"]
    case: Case = replace(
        base,
        width=size[0],
        height=size[1],
        seed=seed,
        steps=1,
        guidance=1.0,
        noise_dtype=noise_dtype,
    )
    got = native.probe(bonsai_probe, converted(case.recipe), case, tmp_path)["noise"]
    channels = got.shape[-1]
    want = reference.as_rows(
        reference.torch_noise(channels, case.height, case.width, seed, noise_dtype)
    )
    np.testing.assert_array_equal(
        got.astype(np.float32).reshape(want.shape).view(np.uint32), want.view(np.uint32)
    )
