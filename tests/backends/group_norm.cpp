// SPDX-License-Identifier: Apache-2.0
#include "device_case.h"

namespace backend_test {

// Sums in f32 within a thread: some 1e-6. A mean of 1000 deviations costs three digits of the
// inputs themselves.
TEST(device_group_norm) {
    struct Shape {
        int64_t pixels, channels;
        int groups;
        int64_t gap;
        float mean;
        double allowed;
    };
    const Shape shapes[] = {{1, 64, 32, 0, 0, 3e-6},      {77, 96, 4, 3, 0.3f, 3e-6},
                            {4097, 512, 32, 0, 2, 3e-6},  {300, 1536, 32, 4, 0, 3e-6},
                            {100, 2500, 4, 0, 1, 3e-6},   {33, 250, 5, 1, 1, 3e-6},
                            {40000, 128, 32, 0, 0, 3e-6}, {3000, 64, 32, 0, 1000, 1e-4}};
    for_each_device(Precision::kExact, [&](Pair& pair) {
        for (const Shape& s : shapes) {
            Case c(pair,
                   format("%lld x %lld in %d groups, gap %lld", static_cast<long long>(s.pixels),
                          static_cast<long long>(s.channels), s.groups,
                          static_cast<long long>(s.gap)));
            const Operand x = c.random(s.pixels, s.channels, s.gap, s.gap, s.mean, 1),
                          gain = c.random(1, s.channels), bias = c.random(1, s.channels),
                          affine = c.room(2, s.channels, 5, 1);
            c.run([&](Side side) {
                GroupNormArgs args;
                args.x = x[side], args.gain = gain[side], args.bias = bias[side];
                args.affine = affine[side], args.groups = s.groups, args.eps = 1e-6f;
                return side.backend.group_norm(args);
            });
            c.expect_close(affine, s.allowed);
        }
    });
}

// A picture in strips of unequal size; the CPU's is one.
TEST(device_group_norm_strips) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const float mean : {0.0f, 100.0f}) {
            constexpr int64_t kPixels = 5000;
            Case c(pair, format("strips, mean %g", static_cast<double>(mean)));
            const Operand x = c.random(kPixels, 96, 4, 0, mean, 1), gain = c.random(1, 96),
                          bias = c.random(1, 96), affine = c.room(2, 96);
            c.run([&](Side side) {
                GroupNormArgs args;
                args.gain = gain[side], args.bias = bias[side], args.affine = affine[side];
                args.groups = 8, args.eps = 1e-6f;
                args.x = x[side];
                if (side.index == 0) return side.backend.group_norm(args);
                std::unique_ptr<Buffer> carry;
                BONSAI_TRY(side.backend.allocate(6 * 8 * sizeof(float), &carry));
                args.carry = f32_matrix(static_cast<float*>(carry->data()), 6, 8);
                args.pixels = kPixels;
                for (const int64_t begin : {0, 700, 701, 3000}) {
                    const int64_t end = begin == 0     ? 700
                                        : begin == 700 ? 701
                                        : begin == 701 ? 3000
                                                       : kPixels;
                    args.x = x.rows(begin, end - begin)[side];
                    args.first = begin == 0, args.last = end == kPixels;
                    BONSAI_TRY(side.backend.group_norm(args));
                }
                return side.backend.synchronize();
            });
            c.expect_close(affine, mean == 0 ? 3e-6 : 3e-5);
        }
    });
}

} // namespace backend_test
