// SPDX-License-Identifier: Apache-2.0
// Faults planted on purpose, to prove that the fuzz targets find faults (tests/fuzz/README.md). No
// library that anybody uses has them: planted() is 0 unless a fuzz build asks for one with
// -DBONSAI_PLANT_BUG=N, which CMake refuses in any other build.
#pragma once

#include <cstddef>

#ifndef BONSAI_PLANT_BUG
#define BONSAI_PLANT_BUG 0
#endif

namespace bonsai {

// 1 in the build that has this fault: 1 GGUF, 2 PNG, 3 UTF-8, 4 tokenizer.
constexpr size_t planted(int fault) {
    return fault == BONSAI_PLANT_BUG ? 1 : 0;
}

} // namespace bonsai
