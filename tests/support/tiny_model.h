// SPDX-License-Identifier: Apache-2.0
// The self-test's tiny model under the name that the tests use.
#pragma once

#include "selftest/tiny_model.h"
#include "support/gguf_builder.h"

namespace test {

using bonsai::TensorFilter;
using bonsai::TinyModel;

} // namespace test
