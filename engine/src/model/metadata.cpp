// SPDX-License-Identifier: Apache-2.0
// The lines that go into a PNG: all that is needed to draw the same picture again.
#include "core/png.h"
#include "model/pipeline.h"

namespace bonsai {

static const char* dtype_text(bonsai_dtype dtype) {
    return dtype == BONSAI_DTYPE_F16 ? "f16" : dtype == BONSAI_DTYPE_BF16 ? "bf16" : "f32";
}

std::string Pipeline::metadata(const Request& request, uint64_t seed,
                               const std::vector<float>& sigmas) const {
    std::string levels;
    for (const float sigma : sigmas)
        levels += format("%s%.9g", levels.empty() ? "" : " ", static_cast<double>(sigma));
    std::string out;
    out += metadata_line("prompt", request.prompt);
    out += format("seed: %llu\n", static_cast<unsigned long long>(seed));
    out += format("size: %lldx%lld\n", static_cast<long long>(request.width),
                  static_cast<long long>(request.height));
    out += format("steps: %lld\n", static_cast<long long>(request.steps));
    out += format("guidance: %.9g\n", static_cast<double>(request.guidance));
    out += format("shift: %.9g\n", static_cast<double>(request.shift));
    out += "sigmas: " + levels + "\n";
    out += format("noise_dtype: %s\n", dtype_text(request.noise_dtype));
    out += format("timestep_dtype: %s\n", dtype_text(request.timestep_dtype));
    out += format("precision: %s\n",
                  options_.backend.precision == Precision::kExact ? "exact" : "fast");
    out += metadata_line("model", config_.name);
    out += "model_hash: " + hash_ + "\n";
    out += "engine: bonsai " BONSAI_VERSION "\n";
    return out;
}

} // namespace bonsai
