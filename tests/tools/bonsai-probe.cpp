// SPDX-License-Identifier: Apache-2.0
// bonsai-probe: runs the pipeline and writes every named intermediate as DIR/<name>.npy, for
// comparison with the reference.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "model/pipeline.h"

using namespace bonsai;

[[noreturn]] static void refuse(const std::string& path) {
    std::fprintf(stderr, "bonsai-probe: %s: %s\n", path.c_str(), std::strerror(errno));
    std::exit(1);
}

static void write_npy(const std::string& path, const char* type, const std::string& shape,
                      const void* data, size_t bytes) {
    std::string header = std::string("{'descr': '") + type +
                         "', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.append(64 - (10 + header.size() + 1) % 64, ' ');
    header += '\n';
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (!file) refuse(path);
    std::string prefix("\x93NUMPY\x01\x00", 8); // version 1.0
    prefix += static_cast<char>(header.size() & 255);
    prefix += static_cast<char>(header.size() >> 8);
    const std::string head = prefix + header;
    const bool whole = std::fwrite(head.data(), 1, head.size(), file) == head.size() &&
                       std::fwrite(data, 1, bytes, file) == bytes;
    if (std::fclose(file) != 0 || !whole) refuse(path);
}

static bonsai_dtype dtype_of(const char* text) {
    return std::strcmp(text, "bf16") == 0  ? BONSAI_DTYPE_BF16
           : std::strcmp(text, "f16") == 0 ? BONSAI_DTYPE_F16
                                           : BONSAI_DTYPE_F32;
}

// The pipeline keeps noise, velocities and latents in the host's memory, whatever the device.
static bool kept_on_host(const std::string& name) {
    return name == "noise" || name.rfind("velocity_", 0) == 0 ||
           (name.rfind("latents_", 0) == 0 && name != "latents_unpatchified");
}

static Status values_of(const std::string& name, const Tensor& value, Backend& backend,
                        std::vector<float>* data) {
    data->resize(static_cast<size_t>(value.rows * value.cols));
    if (!kept_on_host(name)) return backend.read(value, data->data());
    std::memcpy(data->data(), value.data, data->size() * sizeof(float));
    return Status();
}

static int failed(const Status& status) {
    std::fprintf(stderr, "bonsai-probe: %s\n", status.message().c_str());
    return 1;
}

struct Settings {
    PipelineOptions options;
    Request request;
    std::string out = ".";
};

static bool set(Settings& s, const std::string& name, const char* value) {
    if (name == "--prompt")
        s.request.prompt = value;
    else if (name == "--width")
        s.request.width = std::atoi(value);
    else if (name == "--height")
        s.request.height = std::atoi(value);
    else if (name == "--steps")
        s.request.steps = std::atoi(value);
    else if (name == "--seed")
        s.request.seed = std::strtoull(value, nullptr, 10);
    else if (name == "--guidance")
        s.request.guidance = static_cast<float>(std::atof(value));
    else if (name == "--shift")
        s.request.shift = static_cast<float>(std::atof(value));
    else if (name == "--precision")
        s.options.backend.precision =
            std::strcmp(value, "exact") == 0 ? Precision::kExact : Precision::kFast;
    else if (name == "--noise-dtype")
        s.request.noise_dtype = dtype_of(value);
    else if (name == "--timestep-dtype")
        s.request.timestep_dtype = dtype_of(value);
    else if (name == "--threads")
        s.options.backend.threads = std::atoi(value);
    else if (name == "--max-memory")
        s.options.max_memory = std::strtoull(value, nullptr, 10);
    else if (name == "--device")
        s.options.device = value;
    else if (name == "--out")
        s.out = value;
    else
        return false;
    return true;
}

int main(int argc, char** argv) {
    if (argc < 2 || argc % 2 != 0) {
        std::fprintf(stderr,
                     "usage: bonsai-probe MODEL [--prompt P] [--width W] [--height H] "
                     "[--steps N] [--seed S] [--guidance G] [--shift S]\n"
                     "       [--precision exact|fast] [--noise-dtype f32|f16|bf16] "
                     "[--timestep-dtype ...] [--threads N] [--max-memory B] [--device ID] [--out "
                     "DIR]\n");
        return 2;
    }
    Settings s;
    s.options.device = "cpu"; // whose results are the same wherever the tests run
    s.options.log = [](const std::string& line) {
        std::fprintf(stderr, "bonsai-probe: %s\n", line.c_str());
    };
    for (int i = 2; i < argc; i += 2)
        if (!set(s, argv[i], argv[i + 1])) {
            std::fprintf(stderr, "bonsai-probe: unknown option %s\n", argv[i]);
            return 2;
        }
    std::unique_ptr<Pipeline> pipeline;
    Status status = Pipeline::open(argv[1], s.options, &pipeline);
    if (!status.ok()) return failed(status);
    s.request.probe = [&](const std::string& name, const Tensor& value, Backend& backend) {
        std::vector<float> data;
        BONSAI_TRY(values_of(name, value, backend, &data));
        write_npy(s.out + "/" + name + ".npy", "<f4",
                  std::to_string(value.rows) + ", " + std::to_string(value.cols), data.data(),
                  data.size() * 4);
        return Status();
    };
    std::vector<int32_t> ids;
    status = pipeline->tokenize(s.request.prompt, &ids);
    if (!status.ok()) return failed(status);
    write_npy(s.out + "/input_ids.npy", "<i4", std::to_string(ids.size()) + ",", ids.data(),
              ids.size() * 4);
    std::vector<Picture> pictures;
    status = pipeline->generate(s.request, &pictures);
    if (!status.ok()) return failed(status);
    const Picture& p = pictures[0];
    write_npy(s.out + "/image_uint8.npy", "|u1",
              std::to_string(p.height) + ", " + std::to_string(p.width) + ", 3", p.rgb.data(),
              p.rgb.size());
    std::printf("text_encoder %.3f s, denoise %.3f s, vae %.3f s; peaks %.1f %.1f %.1f MB\n",
                p.stats.text_encoder_seconds, p.stats.denoise_seconds, p.stats.vae_seconds,
                static_cast<double>(p.stats.text_encoder_peak) / 1e6,
                static_cast<double>(p.stats.denoise_peak) / 1e6,
                static_cast<double>(p.stats.vae_peak) / 1e6);
    return 0;
}
