// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <numeric>

#include "core/identify.h"
#include "core/utf8.h"

namespace bonsai {

namespace {

constexpr int64_t kFormatVersion = 1;
constexpr size_t kMaxText = 1 << 16; // bytes: the template around a prompt has a hundred

// Reads keys below one prefix and remembers the first failure, so that a list of reads needs one
// check at its end.
class Reader {
  public:
    Reader(const GgufFile& file, const char* prefix) : file_(file), prefix_(prefix) {}

    int64_t integer(const char* key, int64_t low, int64_t high) {
        int64_t value = low;
        note(file_.get(prefix_ + key, &value));
        in_range(key, value, low, high);
        return value;
    }
    std::vector<int64_t> integers(const char* key, size_t least, size_t most, int64_t low,
                                  int64_t high) {
        std::vector<int64_t> values;
        note(file_.get(prefix_ + key, &values, most));
        if (status_.ok() && values.size() < least)
            status_ = fail(ErrorCode::kFormat, "%s: key %s%s has %zu entries, expected %zu to %zu",
                           path(), prefix_.c_str(), key, values.size(), least, most);
        for (const int64_t value : values)
            in_range(key, value, low, high);
        return values;
    }
    double number(const char* key, double low, double high) {
        double value = low;
        note(file_.get(prefix_ + key, &value));
        if (status_.ok() && !(value >= low && value <= high))
            status_ = fail(ErrorCode::kFormat, "%s: key %s%s is %g, expected %g to %g", path(),
                           prefix_.c_str(), key, value, low, high);
        return value;
    }
    bool boolean(const char* key) {
        bool value = false;
        note(file_.get(prefix_ + key, &value));
        return value;
    }
    std::string text(const char* key) {
        std::string_view value;
        note(file_.get(prefix_ + key, &value));
        if (status_.ok() && value.size() > kMaxText)
            status_ = fail(ErrorCode::kFormat, "%s: key %s%s has %zu bytes, expected at most %zu",
                           path(), prefix_.c_str(), key, value.size(), kMaxText);
        if (status_.ok() && (value.find('\0') != std::string_view::npos || // cuts C strings short
                             find_invalid_utf8(value) != std::string_view::npos))
            status_ = fail(ErrorCode::kFormat, "%s: key %s%s contains a zero byte or is not UTF-8",
                           path(), prefix_.c_str(), key);
        return std::string(status_.ok() ? value : std::string_view());
    }
    // Text of one line, which is shown.
    std::string line(const char* key) {
        const std::string value = text(key);
        if (status_.ok() && !is_plain_text(value))
            status_ = fail(ErrorCode::kFormat, "%s: key %s%s contains a control character", path(),
                           prefix_.c_str(), key);
        return value;
    }
    std::string line_or(const char* key, const char* fallback) {
        return file_.has(prefix_ + key) ? line(key) : fallback;
    }

    // A relation between values that has to hold.
    void require(bool condition, const char* what) {
        if (status_.ok() && !condition)
            status_ = fail(ErrorCode::kFormat, "%s: %s* contradict each other: %s", path(),
                           prefix_.c_str(), what);
    }
    Status status() const { return status_; }

  private:
    const char* path() const { return file_.file().path().c_str(); }
    void note(const Status& status) {
        if (status_.ok()) status_ = status;
    }
    void in_range(const char* key, int64_t value, int64_t low, int64_t high) {
        if (status_.ok() && (value < low || value > high))
            status_ = fail(ErrorCode::kFormat, "%s: key %s%s is %lld, expected %lld to %lld",
                           path(), prefix_.c_str(), key, static_cast<long long>(value),
                           static_cast<long long>(low), static_cast<long long>(high));
    }

    const GgufFile& file_;
    std::string prefix_;
    Status status_;
};

Status read_text(const GgufFile& file, TextEncoderConfig* c) {
    Reader r(file, "bonsai.te.");
    c->vocab_size = r.integer("vocab_size", 1, 1 << 22);
    c->width = r.integer("width", 8, 1 << 16);
    c->layers = r.integer("layers", 1, 1024);
    c->heads = r.integer("heads", 1, 1024);
    c->kv_heads = r.integer("kv_heads", 1, 1024);
    c->head_dim = r.integer("head_dim", 8, 1024);
    c->ffn_width = r.integer("ffn_width", 8, 1 << 18);
    c->norm_eps = static_cast<float>(r.number("norm_eps", 0, 1));
    c->rope_theta = r.number("rope_theta", 1, 1e12);
    c->out_layers = r.integers("out_layers", 1, 16, 1, c->layers);
    c->max_tokens = r.integer("max_tokens", 1, 1 << 16);
    c->final_norm = r.boolean("final_norm");
    BONSAI_TRY(r.status()); // relations need values in range, divisors above all
    r.require(c->heads % c->kv_heads == 0, "heads is not a multiple of kv_heads");
    r.require(c->head_dim % 8 == 0, "head_dim is not a multiple of 8");
    for (size_t i = 1; i < c->out_layers.size(); ++i)
        r.require(c->out_layers[i] > c->out_layers[i - 1], "out_layers do not ascend");
    return r.status();
}

Status read_transformer(const GgufFile& file, TransformerConfig* c) {
    Reader r(file, "bonsai.dit.");
    c->double_blocks = r.integer("double_blocks", 0, 1024);
    c->single_blocks = r.integer("single_blocks", 0, 1024);
    c->heads = r.integer("heads", 1, 1024);
    c->head_dim = r.integer("head_dim", 8, 1024);
    c->channels = r.integer("in_channels", 4, 1 << 16);
    c->context_width = r.integer("context_width", 1, 1 << 18);
    c->mlp_width = r.integer("mlp_width", 1, 1 << 18);
    c->time_channels = r.integer("time_channels", 2, 1 << 16);
    c->rope_axes = r.integers("rope_axes", 4, 4, 0, 1024);
    c->rope_theta = r.number("rope_theta", 1, 1e12);
    c->norm_eps = static_cast<float>(r.number("norm_eps", 0, 1));
    BONSAI_TRY(r.status());
    r.require(std::accumulate(c->rope_axes.begin(), c->rope_axes.end(), int64_t(0)) == c->head_dim,
              "rope_axes do not add up to head_dim");
    for (const int64_t dims : c->rope_axes)
        r.require(dims % 2 == 0, "rope_axes holds an odd number");
    r.require(c->head_dim % 8 == 0, "head_dim is not a multiple of 8");
    r.require(c->time_channels % 2 == 0, "time_channels is odd");
    return r.status();
}

Status read_vae(const GgufFile& file, VaeConfig* c) {
    Reader r(file, "bonsai.vae.");
    // At least 4: noise is drawn 16 values at a time, and a token has 4 times as many channels.
    c->latent_channels = r.integer("latent_channels", 4, 1 << 12);
    c->layers_per_block = r.integer("layers_per_block", 1, 64);
    c->norm_groups = r.integer("norm_groups", 1, 1 << 12);
    c->decoder_widths = r.integers("decoder_widths", 4, 4, 1, 1 << 14);
    c->norm_eps = static_cast<float>(r.number("norm_eps", 0, 1));
    c->bn_eps = static_cast<float>(r.number("bn_eps", 0, 1));
    c->mid_attention = r.boolean("mid_attention");
    BONSAI_TRY(r.status());
    for (const int64_t width : c->decoder_widths)
        r.require(width % c->norm_groups == 0, "a decoder width is not a multiple of norm_groups");
    return r.status();
}

Status read_schedule(const GgufFile& file, ScheduleConfig* c) {
    Reader r(file, "bonsai.schedule.");
    c->dynamic = r.boolean("dynamic");
    c->shift = static_cast<float>(r.number("shift", 1e-3, 1e3));
    c->train_steps = r.integer("train_steps", 1, 1 << 20);
    const std::string type = r.text("type");
    r.require(type == "exponential" || type == "linear", "type is neither exponential nor linear");
    c->exponential = type == "exponential";
    return r.status();
}

} // namespace

Status read_config(const GgufFile& file, Config* c) {
    const char* path = file.file().path().c_str();
    const Identity id = identify(file);
    if (!id.is_bonsai && !id.command.empty()) // a part of a model, in the names of others
        return fail(ErrorCode::kUnsupported, "%s: %s, expected a bonsai model; this makes one: %s",
                    path, id.what.c_str(), id.command.c_str());
    std::string_view architecture;
    BONSAI_TRY(file.get("general.architecture", &architecture));
    if (architecture == "bonsai-embeds")
        return fail(ErrorCode::kUnsupported, "%s: %s", path, id.what.c_str());
    if (architecture != "bonsai")
        return fail(ErrorCode::kUnsupported,
                    "%s: architecture %s, expected bonsai: this engine runs files that "
                    "bonsai-convert makes from FLUX.2 klein and Bonsai "
                    "Image checkpoints",
                    path, printable(architecture).c_str());
    Reader r(file, "");
    const int64_t version = r.integer("bonsai.format_version", 1, 1 << 20);
    BONSAI_TRY(r.status());
    if (version > kFormatVersion)
        return fail(ErrorCode::kUnsupported,
                    "%s: format version %lld, this engine reads up to %lld; update bonsai", path,
                    static_cast<long long>(version), static_cast<long long>(kFormatVersion));
    c->name = r.line_or("general.name", "unnamed");
    c->license = r.line_or("general.license", "");
    c->source = r.line_or("general.source.repo_url", "");
    c->variant = r.line("bonsai.variant");
    c->distilled = r.boolean("bonsai.distilled");
    c->default_width = r.integer("bonsai.default.width", kSizeMultiple, kMaxSide);
    c->default_height = r.integer("bonsai.default.height", kSizeMultiple, kMaxSide);
    c->default_steps = r.integer("bonsai.default.steps", 1, 1000);
    c->default_guidance = static_cast<float>(r.number("bonsai.default.guidance", 0, 1000));
    c->prompt_prefix = r.text("bonsai.prompt.prefix");
    c->prompt_suffix = r.text("bonsai.prompt.suffix");
    BONSAI_TRY(r.status());
    BONSAI_TRY(read_text(file, &c->text));
    BONSAI_TRY(read_transformer(file, &c->transformer));
    BONSAI_TRY(read_vae(file, &c->vae));
    BONSAI_TRY(read_schedule(file, &c->schedule));

    Reader all(file, "bonsai.");
    all.require(c->transformer.context_width == c->text.prompt_width(),
                "dit.context_width is not te.width times the layers read");
    all.require(c->transformer.channels == 4 * c->vae.latent_channels,
                "dit.in_channels is not 4 vae.latent_channels");
    all.require(c->text.out_layers.back() == c->text.layers,
                "te.layers stores more than the last layer read");
    return all.status();
}

} // namespace bonsai
