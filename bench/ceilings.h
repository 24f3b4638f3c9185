// SPDX-License-Identifier: Apache-2.0
// What a core can do at most, measured when asked: independent chains of the instructions that
// kernels are made of. One operation (OP) is a multiplication or an addition.
#pragma once

namespace bonsai::bench {

enum class Ceiling {
    kBytes,  // vpmaddubsw + vpaddw on 256 bits, int8
    kFloats, // vfmadd on 256 bits, fp32
    kMemory, // reading 256 MB in order, GB/s
};

// Processor time of the calling thread, in seconds.
double thread_seconds();

// GOP/s, or GB/s, of one core in processor time; 0 where there is no such loop.
double ceiling(Ceiling kind);

} // namespace bonsai::bench
