# SPDX-License-Identifier: Apache-2.0
"""The PNG writer, with zlib and with its own stored blocks, against Pillow's reader."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    f"engine/src/core/{name}.cpp" for name in ("png_encode", "file_output", "status", "utf8")
]

# Reads raw RGB from stdin, writes a PNG: width height output.
MAIN = """
#include <cstdio>
#include <cstdlib>
#include "core/file_output.h"
#include "core/png.h"
int main(int, char** argv) {
    const int width = std::atoi(argv[1]), height = std::atoi(argv[2]);
    std::vector<uint8_t> rgb(size_t(width) * height * 3), png;
    if (std::fread(rgb.data(), 1, rgb.size(), stdin) != rgb.size())
        return 2;
    bonsai::Status status = bonsai::encode_png(rgb.data(), width, height, "prompt: ä\\n", &png);
    if (status.ok())
        status = bonsai::write_file(argv[3], png.data(), png.size());
    std::fputs(status.message().c_str(), stderr);
    return status.ok() ? 0 : 1;
}
"""


@pytest.fixture(scope="module", params=["zlib", "stored"])
def writer(request, tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("png")
    (folder / "main.cpp").write_text(MAIN, encoding="utf-8")
    command = [compiler, "-std=c++17", "-O1", f"-I{ROOT}/engine/include", f"-I{ROOT}/engine/src"]
    command += [str(ROOT / source) for source in SOURCES] + [str(folder / "main.cpp")]
    command += ["-o", str(folder / "writer")]
    if request.param == "zlib":
        command += ["-DBONSAI_HAVE_ZLIB", "-lz"]
    built = subprocess.run(command, capture_output=True, text=True)
    if request.param == "zlib" and "zlib.h" in built.stderr:
        pytest.skip("no zlib headers")
    assert built.returncode == 0, built.stderr
    return folder / "writer"


def pictures():
    random = np.random.default_rng(1)
    x, y = np.meshgrid(np.arange(300), np.arange(90))
    yield "one pixel", np.array([[[1, 2, 3]]], np.uint8)
    yield "one row", random.integers(0, 256, (1, 37, 3), np.uint8)
    yield "one column", random.integers(0, 256, (37, 1, 3), np.uint8)
    yield "noise", random.integers(0, 256, (131, 257, 3), np.uint8)
    yield "gradient", np.stack([x % 256, y * 2, (x + y) % 256], -1).astype(np.uint8)
    # 21845 * 3 + 1 bytes a row: blocks of 65535 bytes end in the middle of rows.
    yield "wide", random.integers(0, 256, (3, 21845, 3), np.uint8)


@pytest.mark.parametrize("pixels", [p for _, p in pictures()], ids=[n for n, _ in pictures()])
def test_pillow_reads_the_same_pixels(writer, tmp_path, pixels):
    height, width, _ = pixels.shape
    path = tmp_path / "out.png"
    subprocess.run([writer, str(width), str(height), path], input=pixels.tobytes(), check=True)
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), pixels)
        assert image.info["bonsai"] == "prompt: ä\n"
