// SPDX-License-Identifier: Apache-2.0
// What kernels ask of the compiler beyond the language. Accumulators stay in registers only when
// the loops over them are unrolled and the functions that hold them inlined.
#pragma once

#if defined(__GNUC__)
#define BONSAI_ALWAYS_INLINE inline __attribute__((always_inline))
#define BONSAI_NEVER_INLINE __attribute__((noinline))
#define BONSAI_PRAGMA(text) _Pragma(#text)
#define BONSAI_UNROLL(count) BONSAI_PRAGMA(GCC unroll count)
#elif defined(_MSC_VER)
#define BONSAI_ALWAYS_INLINE __forceinline
#define BONSAI_NEVER_INLINE __declspec(noinline)
#define BONSAI_UNROLL(count) // full unrolling of short constant loops is the optimiser's default
#else
#define BONSAI_ALWAYS_INLINE inline
#define BONSAI_NEVER_INLINE
#define BONSAI_UNROLL(count)
#endif
