// SPDX-License-Identifier: Apache-2.0
// What needs no open model: the library itself, its devices, the self-test, model files.
#include "bonsai.h"

#include <cstdlib>
#include <memory>
#include <vector>

#include "api/boundary.h"
#include "api/context.h"
#include "core/describe.h"
#include "selftest/self_test.h"

using namespace bonsai;
using namespace bonsai::api;

extern "C" {

const char* bonsai_version(void) {
    return BONSAI_VERSION;
}
uint32_t bonsai_abi_version(void) {
    return BONSAI_ABI_VERSION;
}
void bonsai_free(void* data) {
    std::free(data);
}

const char* bonsai_status_text(bonsai_status status) {
    switch (status) {
    case BONSAI_OK:
        return "ok";
    case BONSAI_ERR_ARGUMENT:
        return "invalid argument";
    case BONSAI_ERR_IO:
        return "input or output error";
    case BONSAI_ERR_FORMAT:
        return "invalid file";
    case BONSAI_ERR_UNSUPPORTED:
        return "not supported";
    case BONSAI_ERR_MEMORY:
        return "out of memory";
    case BONSAI_ERR_CANCELLED:
        return "cancelled";
    case BONSAI_ERR_INTERNAL:
        return "internal error";
    }
    return "unknown status";
}

int32_t bonsai_device_count(void) {
    int32_t count = 0;
    (void)guarded([&] {
        count = static_cast<int32_t>(list_devices().size());
        return Status();
    });
    return count;
}

bonsai_status bonsai_device_get_info(int32_t index, bonsai_device_info* info) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"info", info}}));
        const std::vector<DeviceInfo> devices = list_devices();
        if (index < 0 || static_cast<size_t>(index) >= devices.size())
            return fail(ErrorCode::kArgument, "device %d: there are %zu", index, devices.size());
        const DeviceInfo& device = devices[static_cast<size_t>(index)];
        bonsai_device_info full{};
        full.threads = device.threads;
        full.memory_total = device.memory_total;
        full.memory_free = device.memory_free;
        set_text(full.id, device.id);
        set_text(full.name, device.name);
        set_text(full.features, device.features);
        return hand_over(full, info);
    });
}

bonsai_status bonsai_self_test(const bonsai_open_params* params, int32_t json, char** report,
                               int32_t* failures) {
    return guarded([&]() -> Status {
        bonsai_open_params p;
        PipelineOptions options;
        BONSAI_TRY(open_options(params, &p, &options));
        SelfTestReport found;
        BONSAI_TRY(run_self_test(
            [&](Precision precision, std::unique_ptr<Backend>* out) {
                return create_backend(options.device, {options.backend.threads, precision}, out);
            },
            &found));
        if (failures) *failures = found.failures();
        if (!report) return Status();
        return text_out(json ? self_test_json(found) : self_test_text(found), report);
    });
}

bonsai_status bonsai_file_describe(const char* path, int32_t json, char** text) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"path", path}, {"text", text}}));
        std::unique_ptr<GgufFile> file;
        BONSAI_TRY(GgufFile::open(path, &file));
        return text_out(json ? describe_json(*file) : describe_text(*file), text);
    });
}

bonsai_status bonsai_file_verify(const char* path, bonsai_verify_callback callback, void* user) {
    return guarded([&]() -> Status {
        BONSAI_TRY(require({{"path", path}}));
        std::unique_ptr<GgufFile> file;
        BONSAI_TRY(GgufFile::open(path, &file));
        return verify_hashes(*file, [&](double fraction, std::string_view tensor) {
            if (callback && callback(fraction, std::string(tensor).c_str(), user) != 0)
                return fail(ErrorCode::kCancelled, "stopped by the callback");
            return Status();
        });
    });
}

} // extern "C"
