// SPDX-License-Identifier: Apache-2.0
// The decoder in strips: whatever memory it is given, it takes what its plan says and draws the
// same pixels.
#include <cmath>
#include <cstring>

#include "backends/cpu/backend.h"
#include "core/gguf.h"
#include "core/rng.h"
#include "model/vae.h"
#include "support/gguf_builder.h"
#include "test.h"

using namespace bonsai;

namespace {

constexpr int64_t kLatentChannels = 4;

// A VAE with random weights; blocks with and without a change of width.
class VaeFile {
  public:
    explicit VaeFile(const VaeConfig& c) {
        const std::string d = "vae.decoder.";
        const int64_t top = c.decoder_widths.back();
        vector("vae.bn.running_mean", 4 * c.latent_channels, 0);
        vector("vae.bn.running_var", 4 * c.latent_channels, 1);
        conv("vae.post_quant_conv", c.latent_channels, c.latent_channels, 1);
        conv(d + "conv_in", c.latent_channels, top, 3);
        res(d + "mid_block.resnets.0", top, top), res(d + "mid_block.resnets.1", top, top);
        const std::string a = d + "mid_block.attentions.0.";
        norm(a + "group_norm", top);
        for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"})
            conv(a + name, top, top, 1);
        int64_t in = top;
        for (size_t i = 0; i < c.decoder_widths.size(); ++i) {
            const int64_t out = c.decoder_widths[c.decoder_widths.size() - 1 - i];
            const std::string up = d + "up_blocks." + std::to_string(i);
            for (int64_t j = 0; j <= c.layers_per_block; ++j, in = out)
                res(up + ".resnets." + std::to_string(j), in, out);
            if (i + 1 < c.decoder_widths.size()) conv(up + ".upsamplers.0.conv", out, out, 3);
        }
        norm(d + "conv_norm_out", in), conv(d + "conv_out", in, 3, 3);
    }
    std::string bytes() const { return file_.bytes(); }

  private:
    std::string numbers(int64_t count, float mean, float spread) {
        std::vector<float> values(static_cast<size_t>(std::max<int64_t>(16, count)));
        torch_cpu_randn(next_seed_++, values.data(), values.size());
        for (float& value : values)
            value = mean + spread * value;
        return std::string(reinterpret_cast<const char*>(values.data()),
                           static_cast<size_t>(count) * sizeof(float));
    }
    void vector(const std::string& name, int64_t size, float mean) {
        file_.tensor(name, 0, {static_cast<uint64_t>(size)}, numbers(size, mean, 0.1f));
    }
    void norm(const std::string& name, int64_t channels) {
        vector(name + ".weight", channels, 1), vector(name + ".bias", channels, 0);
    }
    void conv(const std::string& name, int64_t in, int64_t out, int64_t kernel) {
        const int64_t fan = kernel * kernel * in;
        file_.tensor(name + ".weight", 0,
                     {static_cast<uint64_t>(in), static_cast<uint64_t>(kernel * kernel),
                      static_cast<uint64_t>(out)},
                     numbers(fan * out, 0, 1 / std::sqrt(static_cast<float>(fan))));
        vector(name + ".bias", out, 0);
    }
    void res(const std::string& name, int64_t in, int64_t out) {
        norm(name + ".norm1", in), conv(name + ".conv1", in, out, 3);
        norm(name + ".norm2", out), conv(name + ".conv2", out, out, 3);
        if (in != out) conv(name + ".conv_shortcut", in, out, 1);
    }

    GgufBuilder file_;
    uint64_t next_seed_ = 1;
};

VaeConfig config(std::vector<int64_t> widths, int64_t layers) {
    VaeConfig c{};
    c.latent_channels = kLatentChannels, c.layers_per_block = layers, c.norm_groups = 4;
    c.decoder_widths = std::move(widths);
    c.norm_eps = 1e-6f, c.bn_eps = 1e-4f;
    c.mid_attention = true;
    return c;
}

class Decoder {
  public:
    Decoder(const VaeConfig& c, cpu::Level level, Precision precision)
        : file_(VaeFile(c).bytes()), zoom_(int64_t{1} << (c.decoder_widths.size() - 1)) {
        CHECK_OK(cpu::CpuBackend::create({2, precision}, level, &backend_));
        CHECK_OK(GgufFile::open(file_.path(), &gguf_));
        WeightLoader loader(*gguf_, *backend_);
        CHECK_OK(vae_.load(c, loader));
    }
    size_t plan(int64_t height, int64_t width, uint64_t budget) const {
        PlanBackend backend(*backend_);
        Arena arena;
        decode(Run{backend, arena, nullptr, nullptr}, height, width, budget, nullptr);
        return arena.peak();
    }
    // Pixels; checks that the arena's use is `planned` and that progress rises to 1.
    std::vector<float> pixels(int64_t height, int64_t width, uint64_t budget,
                              size_t planned) const {
        std::unique_ptr<Arena> arena;
        CHECK_OK(Arena::create(*backend_, planned, &arena));
        double last = 0;
        const auto tick = [&](double fraction) {
            CHECK(fraction >= last - 1e-9 && fraction <= 1 + 1e-9);
            last = fraction;
            return Status();
        };
        std::vector<float> out;
        decode(Run{*backend_, *arena, tick, nullptr}, height, width, budget, &out);
        CHECK(arena->peak() == planned && last == 1);
        return out;
    }

  private:
    void decode(const Run& run, int64_t height, int64_t width, uint64_t budget,
                std::vector<float>* pixels) const {
        std::vector<float> latents(static_cast<size_t>(height * width * kLatentChannels));
        torch_cpu_randn(9, latents.data(), latents.size());
        Tensor in, out;
        CHECK_OK(run.arena.allocate(height * width, kLatentChannels, &in));
        CHECK_OK(run.arena.allocate(zoom_ * zoom_ * height * width, 3, &out));
        CHECK_OK(run.backend.write(in, latents.data()));
        CHECK_OK(vae_.decode(run, in, height, width, budget, out));
        if (!pixels) return;
        pixels->resize(static_cast<size_t>(out.rows * 3));
        CHECK_OK(run.backend.read(out, pixels->data()));
    }

    test::TempFile file_;
    int64_t zoom_; // pixels a latent pixel becomes along each side
    std::unique_ptr<GgufFile> gguf_;
    std::unique_ptr<Backend> backend_;
    VaeDecoder vae_;
};

// Every plan there is, from the whole down to the least: a budget one byte below what the last one
// takes asks for the next. How many there are.
int compare(const Decoder& decoder, int64_t height, int64_t width) {
    size_t bytes = decoder.plan(height, width, VaeDecoder::kUnlimited);
    const std::vector<float> whole = decoder.pixels(height, width, VaeDecoder::kUnlimited, bytes);
    CHECK(decoder.plan(height, width, bytes) == bytes);
    for (int plans = 1;; ++plans) {
        const size_t next = decoder.plan(height, width, bytes - 1);
        const std::vector<float> strips = decoder.pixels(height, width, bytes - 1, next);
        CHECK(std::memcmp(strips.data(), whole.data(), whole.size() * sizeof(float)) == 0);
        if (next >= bytes) return plans;
        bytes = next;
    }
}

} // namespace

TEST(all_plans_give_the_same_pixels) {
    const VaeConfig c = config({8, 16, 24, 24}, 2);
    for (const Precision precision : {Precision::kFast, Precision::kExact}) {
        const Decoder decoder(c, cpu::levels_of(cpu::detected_features()).back(), precision);
        CHECK(compare(decoder, 12, 10) > 8);
        CHECK(compare(decoder, 6, 22) > 4);
        CHECK(compare(decoder, 34, 2) > 4);
        compare(decoder, 2, 2), compare(decoder, 2, 8);
    }
}

TEST(at_every_level) {
    for (const cpu::Level level : cpu::levels_of(cpu::detected_features()))
        for (const Precision precision : {Precision::kFast, Precision::kExact})
            CHECK(compare(Decoder(config({8, 16}, 1), level, precision), 10, 6) > 1);
}

TEST(decoders_of_other_shapes) {
    const cpu::Level level = cpu::levels_of(cpu::detected_features()).back();
    compare(Decoder(config({8}, 1), level, Precision::kFast), 6, 4);       // nothing is doubled
    compare(Decoder(config({8, 8, 8}, 1), level, Precision::kFast), 8, 8); // all widths alike
    compare(Decoder(config({12, 8}, 2), level, Precision::kFast), 14, 4);  // wider towards the top
}

// A large picture: what the least memory is. Planning needs none of it.
TEST(the_least_memory) {
    const VaeConfig c = config({32, 64, 128, 128}, 2);
    const Decoder decoder(c, cpu::Level::kGeneric, Precision::kFast);
    const size_t whole = decoder.plan(128, 128, VaeDecoder::kUnlimited);
    CHECK(decoder.plan(128, 128, 0) < whole / 4);
    CHECK(decoder.plan(128, 128, whole / 2) <= whole / 2);
}
