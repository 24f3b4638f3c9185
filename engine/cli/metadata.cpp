// SPDX-License-Identifier: Apache-2.0
#include "metadata.h"

#include <algorithm>
#include <memory>

#include "bonsai.h"
#include "failure.h"

namespace bonsai::cli {
namespace {

std::string unescape(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        const char next = text[i] == '\\' && i + 1 < text.size() ? text[i + 1] : 0;
        if (next == 'n' || next == 'r' || next == '\\') {
            out += next == 'n' ? '\n' : next == 'r' ? '\r' : '\\';
            ++i;
        } else {
            out += text[i];
        }
    }
    return out;
}

} // namespace

std::map<std::string, std::string> parse_metadata(const std::string& text) {
    std::map<std::string, std::string> out;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        const size_t colon = text.find(": ", at);
        if (colon < end)
            out[text.substr(at, colon - at)] = unescape(text.substr(colon + 2, end - colon - 2));
        at = end + 1;
    }
    return out;
}

std::map<std::string, std::string> apply_metadata(Options& options) {
    char* raw = nullptr;
    check(bonsai_png_read_metadata(options.from->c_str(), &raw));
    const std::unique_ptr<char, void (*)(void*)> text(raw, bonsai_free);
    const auto values = parse_metadata(text.get());

    // A picture is a file from somewhere: its values are checked as those of the command line are.
    const auto use = [&](const char* key, bool open, auto&& take) {
        const auto found = values.find(key);
        if (open && found != values.end()) take(*options.from + ": " + key, found->second);
    };
    using Text = const std::string&;
    Options& o = options;
    try {
        use("prompt", !o.prompt, [&](Text, Text v) { o.prompt = v; });
        use("seed", !o.seed, [&](Text n, Text v) { o.seed = parse_unsigned(n, v, UINT64_MAX); });
        use("size", !o.width || !o.height, [&](Text n, Text v) {
            Options size;
            parse_size(n, v, size);
            if (!o.width) o.width = size.width;
            if (!o.height) o.height = size.height;
        });
        use("steps", !o.steps, [&](Text n, Text v) { o.steps = parse_count(n, v, 1, kMaxSteps); });
        use("guidance", !o.guidance,
            [&](Text n, Text v) { o.guidance = parse_float(n, v, -1, 1000); });
        use("shift", !o.shift, [&](Text n, Text v) { o.shift = parse_float(n, v, 0, 1000); });
        use("noise_dtype", !o.noise_dtype,
            [&](Text n, Text v) { o.noise_dtype = parse_choice(n, v, dtype_names()); });
        use("timestep_dtype", !o.timestep_dtype,
            [&](Text n, Text v) { o.timestep_dtype = parse_choice(n, v, dtype_names()); });
        use("precision", !o.precision,
            [&](Text n, Text v) { o.precision = parse_choice(n, v, precision_names()); });
    } catch (const Failure& failure) {
        throw Failure(kExitModel, failure.what());
    }
    if (!o.prompt || !o.seed)
        throw Failure(kExitModel, *o.from + ": the metadata names no prompt or no seed");
    return values;
}

} // namespace bonsai::cli
