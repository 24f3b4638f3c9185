// SPDX-License-Identifier: Apache-2.0
// What a stage hands on is looked at before the next one uses it: a value that is not a number, or
// a picture without any content, becomes an error that names the stage and the likely cause. The
// looking takes one pass over a few values; the search for the cause begins only after a failure.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "core/pixels.h"
#include "core/quantize.h"
#include "model/monitor.h"

namespace bonsai {

namespace {

struct StageName {
    const char* text;
    std::string_view prefix; // of its tensors
};

StageName stage_name(bonsai_stage stage) {
    switch (stage) {
    case BONSAI_STAGE_TEXT_ENCODER:
        return {"the text encoder", "te."};
    case BONSAI_STAGE_DENOISE:
        return {"the transformer", "dit."};
    case BONSAI_STAGE_VAE:
        break;
    }
    return {"the VAE decoder", "vae."};
}

// One element of a float type, or what one block of a quantised type multiplies and adds.
bool block_is_finite(DType dtype, const uint8_t* block) {
    uint16_t half;
    float value;
    std::memcpy(&half, block, sizeof half);
    switch (dtype) {
    case DType::kF32:
        std::memcpy(&value, block, sizeof value);
        return std::isfinite(value);
    case DType::kF16:
        return std::isfinite(f16_to_f32(half));
    case DType::kBF16:
        return std::isfinite(bf16_to_f32(half));
    default:
        break;
    }
    BlockCodes codes;
    unpack_block(dtype, block, &codes);
    return std::isfinite(codes.scale) && std::isfinite(codes.offset);
}

// The first tensor below `prefix` that holds NaN or infinity; null when all weights are numbers.
const GgufTensor* find_bad_weight(const GgufFile& file, std::string_view prefix) {
    for (const GgufTensor& tensor : file.tensors()) {
        DType dtype;
        if (tensor.name.substr(0, prefix.size()) != prefix ||
            !dtype_from_gguf(tensor.type_id, &dtype))
            continue;
        const DTypeInfo& info = dtype_info(dtype);
        const uint8_t* data = file.data(tensor);
        for (uint64_t i = 0; i < tensor.bytes / info.bytes; ++i)
            if (!block_is_finite(dtype, data + i * info.bytes)) return &tensor;
    }
    return nullptr;
}

// All rows of `width` values are the same.
bool rows_equal(const std::vector<float>& values, size_t width) {
    for (size_t i = width; i < values.size(); ++i)
        if (values[i] != values[i - width]) return false;
    return true;
}

} // namespace

// when: "at step 2 of 4" or empty.
Status Pipeline::check_numbers(const float* values, size_t count, bonsai_stage stage,
                               const std::string& when) const {
    return all_finite(values, count) ? Status() : not_a_number(stage, when);
}

// The error, with its cause.
Status Pipeline::not_a_number(bonsai_stage stage, const std::string& when) const {
    const StageName name = stage_name(stage);
    const std::string what = format("%s gave a value that is not a number%s%s", name.text,
                                    when.empty() ? "" : " ", when.c_str());
    const char* path = file_->file().path().c_str();
    if (const GgufTensor* bad = find_bad_weight(*file_, name.prefix))
        return fail(ErrorCode::kFormat,
                    "%s: %s: tensor %.*s holds one; compare the file with its hashes (`bonsai-cli "
                    "verify`) and get or convert it again",
                    path, what.c_str(), static_cast<int>(bad->name.size()), bad->name.data());
    return fail(ErrorCode::kInternal,
                "%s: %s although all of its weights are; a number grew too large on the way, or "
                "the device computes wrongly: test it with `bonsai-cli doctor`, and try "
                "--precision exact or a lower --guidance",
                path, what.c_str());
}

// A picture of one colour; pixels [.., 3] as the decoder gave them. Rounding errors alone make the
// pixels of a plain wall differ, so exactly equal ones do not depend on prompt and seed at all.
Status Pipeline::check_plain(const std::vector<float>& latents, const std::vector<float>& pixels,
                             const std::vector<uint8_t>& rgb) const {
    if (rows_equal(pixels, 3)) {
        const bool early = rows_equal(latents, static_cast<size_t>(config_.transformer.channels));
        const StageName name = stage_name(early ? BONSAI_STAGE_DENOISE : BONSAI_STAGE_VAE);
        return fail(ErrorCode::kInternal,
                    "%s: %s gave the same values for every pixel, so the picture would be one "
                    "plain colour; its weights are zero or damaged, or the device computes "
                    "wrongly: try `bonsai-cli verify` and `bonsai-cli doctor`",
                    file_->file().path().c_str(), name.text);
    }
    if (options_.log)
        options_.log(format("the picture is one plain colour, #%02x%02x%02x; another seed or more "
                            "words may help",
                            rgb[0], rgb[1], rgb[2]));
    return Status();
}

} // namespace bonsai
