# SPDX-License-Identifier: Apache-2.0
"""Block types of other programs, against bytes of libggml and against gguf-py's own decoders."""

import numpy as np
import pytest
from bonsai_convert import ggml_types, kquants


@pytest.fixture(scope="module")
def ggml(formats):
    return np.load(formats / "ggml_blocks.npz")


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K"])
def test_libggml(ggml, name):
    key = name.replace("Q2_", "q2_").replace("Q4_", "q4_")
    blocks = ggml[f"{key}.bytes"].reshape(-1, ggml_types.BY_NAME[name].bytes)
    found = kquants.DEQUANTIZE[name](blocks).reshape(4, 512)
    assert np.array_equal(found, ggml[f"{key}.dequant"])


@pytest.mark.parametrize("name", ["Q2_0", "TQ1_0", "TQ2_0"])
def test_libggml_trits(ggml, name):
    blocks = ggml[f"{name.lower()}.bytes"].reshape(-1, ggml_types.BY_NAME[name].bytes)
    trits, d = kquants.UNPACK_TRITS[name](blocks)
    found = (trits.astype(np.float32) - 1) * d.astype(np.float32)[:, None]
    assert np.array_equal(found.reshape(4, 512), ggml[f"{name.lower()}.dequant"])


@pytest.mark.parametrize("name", sorted(kquants.DEQUANTIZE))
def test_gguf_py(name):
    gguf = pytest.importorskip("gguf")
    kind = ggml_types.BY_NAME[name]
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (64, kind.bytes), np.uint8)
    for field in kquants.F16_FIELDS[name]:
        d = (rng.standard_normal(64) * 0.1).astype(np.float16)
        blocks[:, field : field + 2] = d.view(np.uint8).reshape(64, 2)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert np.array_equal(kquants.DEQUANTIZE[name](blocks), theirs.reshape(64, kind.block))
