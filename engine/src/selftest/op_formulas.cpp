// SPDX-License-Identifier: Apache-2.0
#include "selftest/op_formulas.h"

#include <algorithm>
#include <cmath>

namespace bonsai::formula {

double silu(double x) {
    return x / (1 + std::exp(-x));
}

Numbers linear(const Floats& x, const Floats& weight, const Floats& bias) {
    Numbers out(x.rows, weight.rows);
    for (int64_t m = 0; m < x.rows; ++m) {
        for (int64_t n = 0; n < weight.rows; ++n) {
            double sum = bias.rows > 0 ? static_cast<double>(bias.at(0, n)) : 0;
            for (int64_t k = 0; k < x.cols; ++k)
                sum += static_cast<double>(x.at(m, k)) * static_cast<double>(weight.at(n, k));
            out.at(m, n) = sum;
        }
    }
    return out;
}

// 1 / sqrt(mean square + eps) of x[row, begin .. begin + n) after `mean` is taken away.
static double inverse_deviation(const Floats& x, int64_t row, int64_t begin, int64_t n, double mean,
                                double eps) {
    double sum = 0;
    for (int64_t c = begin; c < begin + n; ++c) {
        const double d = static_cast<double>(x.at(row, c)) - mean;
        sum += d * d;
    }
    return 1 / std::sqrt(sum / static_cast<double>(n) + eps);
}

Numbers rms_norm(const Floats& x, const Floats& gain, double eps) {
    Numbers out(x.rows, x.cols);
    for (int64_t r = 0; r < x.rows; ++r) {
        const double inverse = inverse_deviation(x, r, 0, x.cols, 0, eps);
        for (int64_t c = 0; c < x.cols; ++c)
            out.at(r, c) = static_cast<double>(x.at(r, c)) * inverse * gain.at(0, c);
    }
    return out;
}

Numbers layer_norm(const Floats& x, const Floats& scale, const Floats& shift, double eps) {
    Numbers out(x.rows, x.cols);
    for (int64_t r = 0; r < x.rows; ++r) {
        double mean = 0;
        for (int64_t c = 0; c < x.cols; ++c)
            mean += x.at(r, c);
        mean /= static_cast<double>(x.cols);
        const double inverse = inverse_deviation(x, r, 0, x.cols, mean, eps);
        for (int64_t c = 0; c < x.cols; ++c)
            out.at(r, c) = (1 + static_cast<double>(scale.at(0, c))) * inverse *
                               (static_cast<double>(x.at(r, c)) - mean) +
                           shift.at(0, c);
    }
    return out;
}

Numbers head_norm_rope(const Floats& x, const Floats& gain, const Floats& cos, const Floats& sin,
                       RopePairs pairs, double eps) {
    Numbers out(x.rows, x.cols);
    const int64_t head = gain.cols, half = head / 2;
    for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t begin = 0; begin < x.cols; begin += head) {
            const double inverse = inverse_deviation(x, r, begin, head, 0, eps);
            for (int64_t i = 0; i < half; ++i) {
                const bool apart = pairs == RopePairs::kHalves;
                const int64_t a = apart ? i : 2 * i, b = apart ? i + half : 2 * i + 1;
                const double u = inverse * x.at(r, begin + a) * gain.at(0, a);
                const double v = inverse * x.at(r, begin + b) * gain.at(0, b);
                out.at(r, begin + a) = u * cos.at(r, i) - v * sin.at(r, i);
                out.at(r, begin + b) = v * cos.at(r, i) + u * sin.at(r, i);
            }
        }
    }
    return out;
}

Numbers attention(const Floats& q, const Floats& k, const Floats& v, const AttentionShape& s) {
    Numbers out(q.rows, q.cols);
    for (int64_t h = 0; h < s.heads; ++h) {
        const int64_t at = h * s.head_dim, kv = h / (s.heads / s.kv_heads) * s.head_dim;
        for (int64_t i = 0; i < q.rows; ++i) {
            const int64_t keys = s.causal ? std::min(i + 1, k.rows) : k.rows;
            std::vector<double> weights(static_cast<size_t>(keys));
            double largest = -INFINITY, sum = 0;
            for (int64_t j = 0; j < keys; ++j) {
                double dot = 0;
                for (int64_t c = 0; c < s.head_dim; ++c)
                    dot += static_cast<double>(q.at(i, at + c)) * k.at(j, kv + c);
                weights[static_cast<size_t>(j)] = s.scale * dot;
                largest = std::max(largest, s.scale * dot);
            }
            for (double& weight : weights)
                sum += weight = std::exp(weight - largest);
            for (int64_t j = 0; j < keys; ++j)
                for (int64_t c = 0; c < s.head_dim; ++c)
                    out.at(i, at + c) += weights[static_cast<size_t>(j)] / sum *
                                         static_cast<double>(v.at(j, kv + c));
        }
    }
    return out;
}

Numbers group_norm(const Floats& x, const Floats& gain, const Floats& bias, int groups,
                   double eps) {
    Numbers out(2, x.cols);
    const int64_t width = x.cols / groups;
    for (int64_t c = 0; c < x.cols; ++c) {
        const int64_t begin = c / width * width;
        double mean = 0, variance = 0;
        for (int64_t r = 0; r < x.rows; ++r)
            for (int64_t i = begin; i < begin + width; ++i)
                mean += x.at(r, i);
        const double count = static_cast<double>(x.rows * width);
        mean /= count;
        for (int64_t r = 0; r < x.rows; ++r)
            for (int64_t i = begin; i < begin + width; ++i)
                variance += std::pow(static_cast<double>(x.at(r, i)) - mean, 2);
        const double inverse = 1 / std::sqrt(variance / count + eps);
        out.at(0, c) = gain.at(0, c) * inverse;
        out.at(1, c) = bias.at(0, c) - mean * gain.at(0, c) * inverse;
    }
    return out;
}

Numbers conv2d(const Floats& x, const Floats& weight, const Floats& bias, const Floats& affine,
               const ConvShape& s) {
    const int64_t zoom = s.upsample ? 2 : 1, height = s.height * zoom, width = s.width * zoom;
    const auto input = [&](int64_t row, int64_t col, int64_t c) -> double {
        if (row < 0 || col < 0 || row >= height || col >= width) return 0;
        const double value = x.at(row / zoom * s.width + col / zoom, c);
        return affine.rows == 0 ? value : silu(affine.at(0, c) * value + affine.at(1, c));
    };
    Numbers out(height * width, weight.rows);
    for (int64_t row = 0; row < height; ++row) {
        for (int64_t col = 0; col < width; ++col) {
            for (int64_t n = 0; n < weight.rows; ++n) {
                double sum = bias.at(0, n);
                int64_t k = 0;
                for (int64_t dy = 0; dy < s.kernel; ++dy)
                    for (int64_t dx = 0; dx < s.kernel; ++dx)
                        for (int64_t c = 0; c < x.cols; ++c, ++k)
                            sum += input(row + dy - s.kernel / 2, col + dx - s.kernel / 2, c) *
                                   static_cast<double>(weight.at(n, k));
                out.at(row * width + col, n) = sum;
            }
        }
    }
    return out;
}

} // namespace bonsai::formula
