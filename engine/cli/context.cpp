// SPDX-License-Identifier: Apache-2.0
#include "context.h"

#include "failure.h"
#include "model_path.h"
#include "signals.h"
#include "text.h"

namespace bonsai::cli {

Context::Context(const Options& options, Console& console) {
    const ModelPath found = find_model(options.model);
    const std::string& path = found.path;
    if (found.demo)
        console.note(
            "using the small demo model (emoji and shapes, 128 to 384 pixels); -m MODEL.gguf takes "
            "another, and bonsai-convert prism-ml/bonsai-image-ternary-4B-unpacked -o MODEL.gguf "
            "makes the real one");
    bonsai_open_params params;
    bonsai_open_params_init(&params);
    params.threads = options.threads.value_or(params.threads);
    params.precision = options.precision.value_or(params.precision);
    params.max_memory = options.max_memory.value_or(params.max_memory);
    if (options.device) params.device = options.device->c_str();
    params.log = [](const char* line, void* user) { static_cast<Console*>(user)->warning(line); };
    params.log_user = &console;
    {
        const IdleSection interruptible; // a file on a slow disk, a GPU that starts
        stop_if_signalled();
        check(bonsai_open(path.c_str(), &params, &ctx_));
    }
    set_signal_context(ctx_);
    const bonsai_model_info model = info();
    console.detail("model " + path + ": " + model.name + ", " + model.variant + ", " +
                   format_bytes(model.file_bytes) + ", hash " + model.hash);
    console.detail(std::string("device ") + model.device);
}

Context::~Context() {
    set_signal_context(nullptr);
    bonsai_close(ctx_);
}

bonsai_model_info Context::info() const {
    bonsai_model_info info = {};
    info.struct_size = sizeof(info);
    check(bonsai_model_get_info(ctx_, &info));
    return info;
}

} // namespace bonsai::cli
