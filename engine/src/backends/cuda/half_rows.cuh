// SPDX-License-Identifier: Apache-2.0
// What attention and convolutions share when they round f32 operands to f16.
#pragma once

#include "backends/cuda/context.h"

namespace bonsai::cuda {

// *largest = bits of max |x| (f32 ordered as unsigned; NaN above all). `largest` is set to 0 first.
Status absolute_maximum(const Context& context, const Tensor& x, uint32_t* largest);

} // namespace bonsai::cuda
