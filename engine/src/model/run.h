// SPDX-License-Identifier: Apache-2.0
// What a stage of the pipeline is given besides its inputs: where to run, where to put activations,
// and whom to tell.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>

#include "backends/arena.h"

namespace bonsai {

struct Run {
    Backend& backend;
    Arena& arena;
    // Called after each block with the fraction of the stage done; an error (cancelled) ends the
    // stage.
    std::function<Status(double fraction)> tick;
    // Sees named intermediates, for tests; may be empty.
    std::function<Status(const std::string& name, const Tensor& value)> probe;
    // Memory is short: the weights of a block go back as soon as it is done.
    bool streamed = false;

    Status progress(double fraction) const { return tick ? tick(fraction) : Status(); }
    void done_with(std::initializer_list<Tensor> weights) const {
        for (const Tensor& weight : weights)
            backend.evict_weight(weight);
    }
    void drop(std::initializer_list<Tensor> weights) const {
        for (const Tensor& weight : weights)
            backend.drop_weight(weight);
    }
    Status show(const std::string& name, const Tensor& value) const {
        return probe ? probe(name, value) : Status();
    }
};

// A linear layer with one output, in floats.
inline LinearArgs exact_linear(const Tensor& x, const Tensor& weight, const Tensor& out) {
    LinearArgs args = linear_args(x, weight, out);
    args.exact = true;
    return args;
}

// out += gate * (x W^T)
inline LinearArgs linear_add_args(const Tensor& x, const Tensor& weight, const Tensor& out,
                                  const Tensor& gate = Tensor()) {
    LinearArgs args = linear_args(x, weight, out);
    args.projections[0].accumulate = true;
    args.projections[0].gate = gate;
    return args;
}

} // namespace bonsai
