# SPDX-License-Identifier: Apache-2.0
"""Block layouts: against bytes of other libraries, a plain-loop decoder, and round trips."""

import numpy as np
import pytest
from bonsai_convert import blocks, ggml_types, quantize

TRIT_TYPES = ["PQ2_0", "PTQ1_0"]


@pytest.fixture(scope="module")
def library(formats):
    with np.load(formats / "ggml_blocks.npz") as z:
        return {k: z[k] for k in z.files}


@pytest.mark.parametrize("name", ["Q1_0", "Q4_0", "Q4_1", "Q8_0"])
def test_decodes_library_bytes_exactly(library, name):
    size = ggml_types.BY_NAME[name].bytes
    packed = library[f"{name.lower()}.bytes"].reshape(-1, size)
    values = blocks.dequantize(name, packed).reshape(4, 512)
    assert np.array_equal(values, library[f"{name.lower()}.dequant"])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_packing_what_was_unpacked_gives_the_library_bytes(library, name):
    packed = library[f"{name.lower()}.bytes"].reshape(-1, ggml_types.BY_NAME[name].bytes)
    unpack = getattr(blocks, f"unpack_{name.lower()}")
    assert np.array_equal(getattr(blocks, f"pack_{name.lower()}")(*unpack(packed)), packed)


def test_binary_codes_give_the_library_bytes(library):
    trits = (library["codes_binary"] + 1).astype(np.uint8).reshape(-1, 128)
    packed = blocks.pack_q1_0(trits, library["scale_binary"].reshape(-1))
    assert np.array_equal(packed, library["q1_0.bytes"].reshape(-1, 18))


@pytest.mark.parametrize("name", TRIT_TYPES)
def test_ternary_codes_give_the_fixture_bytes(library, name):
    trits = (library["codes_ternary"] + 1).astype(np.uint8).reshape(-1, 128)
    packed = blocks.PACK_TRITS[name](trits, library["scale_ternary"].reshape(-1))
    assert np.array_equal(packed.reshape(4, -1), library[f"{name.lower()}.bytes_handmade"])


def plain_weight(name, block, j):
    """Weight j of one block, straight from FORMAT.md, one element at a time."""
    if name == "PQ2_0":
        d = block[:2].view("<f2")[0]
        q = (int(block[2 + j // 4]) >> (2 * (j % 4))) & 3
    else:
        d = block[26:28].view("<f2")[0]
        if j < 80:
            byte, n = int(block[j % 16]), j // 16
        elif j < 120:
            byte, n = int(block[16 + (j - 80) % 8]), (j - 80) // 8
        else:
            byte, n = int(block[24 + (j - 120) % 2]), (j - 120) // 2
        q = ((byte * 3**n & 255) * 3) >> 8
    return (q - 1) * np.float32(d)


@pytest.mark.parametrize("name", TRIT_TYPES)
def test_plain_loop_agrees(name):
    rng = np.random.default_rng(1)
    trits = rng.integers(0, 3, (5, 128)).astype(np.uint8)
    packed = blocks.PACK_TRITS[name](trits, rng.random(5).astype(np.float16))
    plain = [[plain_weight(name, b, j) for j in range(128)] for b in packed]
    assert np.array_equal(np.array(plain, np.float32), blocks.dequantize(name, packed))


@pytest.mark.parametrize("name", [*TRIT_TYPES, "Q1_0"])
@pytest.mark.parametrize("seed", range(5))
def test_round_trip_of_random_and_constant_groups(name, seed):
    rng = np.random.default_rng(seed)
    choices = [0, 2] if name == "Q1_0" else [0, 1, 2]
    trits = rng.choice(choices, (64, 128)).astype(np.uint8)
    for i, c in enumerate(choices):
        trits[i] = c
    scales = rng.standard_normal(64).astype(np.float16)  # negative ones are legal
    back, back_scales = blocks.UNPACK_TRITS[name](blocks.PACK_TRITS[name](trits, scales))
    assert np.array_equal(back, trits)
    assert np.array_equal(back_scales.view(np.uint16), scales.view(np.uint16))


def test_every_five_trit_number_survives():
    numbers = np.arange(243)
    trits = np.zeros((243, 128), np.uint8)
    for n in range(5):
        trits[:, 16 * n] = numbers // 3 ** (4 - n) % 3
    packed = blocks.pack_ptq1_0(trits, np.ones(243, np.float16))
    assert np.array_equal(blocks.unpack_ptq1_0(packed)[0], trits)
    assert len(np.unique(packed[:, 0])) == 243


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q1_0", "PQ2_0", "PTQ1_0"])
def test_declared_sizes(name):
    kind = ggml_types.BY_NAME[name]
    x = np.random.default_rng(0).standard_normal((3, kind.block)).astype(np.float32)
    assert quantize.quantize(x, name).shape == (3, kind.bytes)
    assert kind.row_bytes(4 * kind.block) == 4 * kind.bytes
    with pytest.raises(ValueError):
        kind.row_bytes(kind.block + 1)
