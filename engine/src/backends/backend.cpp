// SPDX-License-Identifier: Apache-2.0
#include "backends/backend.h"

#include "core/pixels.h"
#include "core/raw_vector.h"

namespace bonsai {

Status Backend::unsupported(const char* op) {
    return fail(ErrorCode::kUnsupported, "device %s does not offer %s", device().id.c_str(), op);
}

Status Backend::read_pixels(const Tensor& from, uint8_t* rgb, bool* finite) {
    RawVector<float> values(static_cast<size_t>(from.rows * from.cols));
    BONSAI_TRY(read(from, values.data()));
    *finite = all_finite(values.data(), values.size());
    for (size_t i = 0; i < values.size(); ++i)
        rgb[i] = to_byte(values[i]);
    return Status();
}

Status Backend::begin_capture() {
    return unsupported("capture");
}
Status Backend::end_capture(std::unique_ptr<Capture>*) {
    return unsupported("capture");
}
Status Backend::replay(const Capture&) {
    return unsupported("capture");
}

Status Backend::do_linear(const LinearArgs&) {
    return unsupported("linear");
}
Status Backend::do_rms_norm(const RmsNormArgs&) {
    return unsupported("rms_norm");
}
Status Backend::do_layer_norm(const LayerNormArgs&) {
    return unsupported("layer_norm");
}
Status Backend::do_head_norm_rope(const HeadNormRopeArgs&) {
    return unsupported("head_norm_rope");
}
Status Backend::do_attention(const AttentionArgs&) {
    return unsupported("attention");
}
Status Backend::do_swiglu(const SwigluArgs&) {
    return unsupported("swiglu");
}
Status Backend::do_silu(const SiluArgs&) {
    return unsupported("silu");
}
Status Backend::do_embed_rows(const EmbedRowsArgs&) {
    return unsupported("embed_rows");
}
Status Backend::do_group_norm(const GroupNormArgs&) {
    return unsupported("group_norm");
}
Status Backend::do_affine(const AffineArgs&) {
    return unsupported("affine");
}
Status Backend::do_conv2d(const Conv2dArgs&) {
    return unsupported("conv2d");
}

} // namespace bonsai
