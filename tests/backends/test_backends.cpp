// SPDX-License-Identifier: Apache-2.0
// What a backend owes beside its ops: memory, errors, weights that come and go, recorded ops. The
// ops are in the files beside this one.
#include <algorithm>

#include "device_case.h"

namespace backend_test {

TEST(device_write_and_read) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        std::unique_ptr<Buffer> buffer;
        CHECK_OK(pair.device->allocate(1000 * sizeof(float), &buffer));
        std::vector<float> values(600), found(600);
        for (size_t i = 0; i < values.size(); ++i)
            values[i] = static_cast<float>(i);
        const Tensor all = f32_matrix(static_cast<float*>(buffer->data()), 10, 100);
        for (const Tensor& part : {all.slice_rows(2, 6), all.slice_cols(7, 60)}) {
            CHECK_OK(pair.device->write(part, values.data()));
            values[0] += 1000; // has been taken
            CHECK_OK(pair.device->read(part, found.data()));
            CHECK(found[0] + 1000 == values[0]);
            CHECK(std::vector<float>(found.begin() + 1, found.end()) ==
                  std::vector<float>(values.begin() + 1, values.end()));
        }
    });
}

// More than the pieces in which transfers are made.
TEST(device_long_write_and_read) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        constexpr int64_t kRows = 5003, kCols = 1001;
        std::vector<float> values(kRows * kCols), found(values.size());
        for (size_t i = 0; i < values.size(); ++i)
            values[i] = static_cast<float>(i % 65521);
        std::unique_ptr<Buffer> buffer;
        CHECK_OK(pair.device->allocate(2 * values.size() * sizeof(float), &buffer));
        const Tensor all = f32_matrix(static_cast<float*>(buffer->data()), kRows, 2 * kCols);
        for (const Tensor& part : {all.slice_cols(kCols, kCols),
                                   f32_matrix(static_cast<float*>(buffer->data()), kRows, kCols)}) {
            CHECK_OK(pair.device->write(part, values.data()));
            CHECK_OK(pair.device->read(part, found.data()));
            CHECK(found == values);
        }
    });
}

TEST(device_copy) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        for (const int64_t gap : {0, 3}) {
            Case c(pair, "copy");
            const Operand from = c.random(37, 45, gap), to = c.room(37, 45, 2 * gap);
            c.run([&](Side s) { return s.backend.copy(from[s], to[s]); });
            c.expect_close(to, 0);
        }
    });
}

TEST(device_memory_that_is_not_there) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        std::unique_ptr<Buffer> buffer;
        CHECK_FAILS(pair.device->allocate(size_t{1} << 50, &buffer), ErrorCode::kMemory, "MB");
        CHECK_OK(pair.device->allocate(1 << 20, &buffer)); // and goes on
        CHECK(pair.device->memory_free() > 0);
        CHECK(pair.device->device().memory_total > 0);
    });
}

namespace {

// What scratch_bytes tells of an op is what the device's memory grows by, weights of `weights`
// bytes aside. make(case): the op's arguments on a side.
template <typename Args, typename Make>
void expect_scratch(const char* name, Precision precision, uint64_t weights,
                    Status (Backend::*op)(const Args&), const Make& make) {
    constexpr uint64_t kLeast = 1 << 20, kSlack = 1 << 16; // what scratch begins with, roundings
    for_each_device(precision, [&](Pair& pair) {
        Case c(pair, name);
        const std::function<Args(const Side&)> args = make(c);
        const uint64_t before = pair.device->memory_used();
        if (before == 0) return; // its memory is the process's
        c.run([&](Side s) { return (s.backend.*op)(args(s)); });
        const uint64_t took = pair.device->memory_used() - before - weights,
                       told = pair.device->scratch_bytes(args({*pair.device, 1})),
                       expected = std::max(told, took > kSlack ? kLeast : 0);
        if (took + kSlack < expected || took > expected + kSlack)
            std::printf("%s: took %llu bytes of scratch, told %llu\n", name,
                        static_cast<unsigned long long>(took),
                        static_cast<unsigned long long>(told));
        CHECK(took + kSlack >= expected && took <= expected + kSlack);
    });
}

void expect_linear_scratch(Precision precision, DType dtype, int64_t rows) {
    constexpr int64_t kOut = 272, kIn = 1280;
    const uint64_t weights = kOut * row_bytes(dtype, kIn);
    expect_scratch(
        format("linear, %s, %d rows", dtype_info(dtype).name, static_cast<int>(rows)).c_str(),
        precision, weights, &Backend::linear, [&](Case& c) {
            const Operand x = c.random(rows, kIn), y = c.room(rows, kOut),
                          w = c.weight(dtype, kOut, kIn);
            return [=](const Side& s) { return linear_args(x[s], w[s], y[s]); };
        });
}

void expect_attention_scratch(Precision precision, int64_t keys, int heads, int head_dim) {
    expect_scratch("attention", precision, 0, &Backend::attention, [&](Case& c) {
        const int64_t width = int64_t{heads} * head_dim;
        const Operand q = c.random(300, width), k = c.random(keys, width),
                      v = c.random(keys, width), out = c.room(300, width);
        return [=](const Side& s) {
            return AttentionArgs{q[s], k[s], v[s], out[s], heads, heads, head_dim, 0.1f, false};
        };
    });
}

} // namespace

TEST(device_scratch_is_what_plans_count) {
    for (const Precision precision : {Precision::kFast, Precision::kExact}) {
        for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kPQ2_0})
            for (const int64_t rows : {4, 900, 1536})
                expect_linear_scratch(precision, dtype, rows);
        expect_attention_scratch(precision, 2000, 3, 128);
        expect_attention_scratch(precision, 2000, 3, 64);
        expect_attention_scratch(precision, 500, 1, 512);
        expect_scratch("conv2d", precision, 96 * 9 * 64 * 2, &Backend::conv2d, [](Case& c) {
            constexpr int64_t kSide = 120;
            const Operand x = c.random(kSide * kSide, 64), out = c.room(kSide * kSide, 96),
                          w = c.weight(DType::kF16, 96, 9 * 64);
            return [=](const Side& s) {
                Conv2dArgs args;
                args.x = x[s], args.weight = w[s], args.out = out[s];
                args.height = args.width = kSide;
                return args;
            };
        });
    }
}

// A weight comes when it is used, may go when it is not, and comes again.
TEST(device_weights_come_and_go) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        Case c(pair, "weights");
        const Operand x = c.random(5, 256), weight = c.weight(DType::kQ8_0, 48, 256),
                      out = c.room(5, 16);
        c.run([&](Side s) {
            const Status status =
                s.backend.linear(linear_args(x[s], weight[s].slice_rows(16, 16), out[s]));
            s.backend.evict_weight(weight[s]);
            return status;
        });
        c.expect_close(out, 1e-3);
    });
}

// Ops that were recorded run again on what their operands then hold.
TEST(device_capture_and_replay) {
    for_each_device(Precision::kExact, [](Pair& pair) {
        Case c(pair, "replay");
        const Operand x = c.random(9, 33), out = c.room(9, 33), twice = c.room(9, 33);
        c.run([&](Side s) {
            const auto ops = [&] {
                BONSAI_TRY(s.backend.silu({x[s], out[s]}));
                return s.backend.silu({out[s], twice[s]});
            };
            const std::vector<float> zeros(9 * 33, 0.0f);
            std::vector<float> values(zeros.size());
            if (!s.backend.begin_capture().ok()) return ops();
            BONSAI_TRY(ops());
            std::unique_ptr<Capture> capture;
            BONSAI_TRY(s.backend.end_capture(&capture));
            BONSAI_TRY(s.backend.read(x[s], values.data()));
            BONSAI_TRY(s.backend.write(x[s], zeros.data()));
            BONSAI_TRY(s.backend.replay(*capture));
            std::vector<float> found(zeros.size());
            BONSAI_TRY(s.backend.read(twice[s], found.data()));
            CHECK(found == zeros);
            BONSAI_TRY(s.backend.write(x[s], values.data()));
            return s.backend.replay(*capture);
        });
        c.expect_close(twice, 1e-6);
    });
}

} // namespace backend_test
