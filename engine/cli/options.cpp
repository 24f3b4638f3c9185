// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "failure.h"
#include "text.h"

namespace bonsai::cli {
namespace {

constexpr int32_t kMaxPixels = 1 << 16;

// Where an option makes sense; one given elsewhere is an error rather than ignored.
enum Scope : unsigned { kDrawing = 1, kModelFile = 2, kMachine = 4, kEverywhere = 7 };

struct Spec {
    const char* group;  // starts a new paragraph of the help when it differs from the one before
    const char* name;   // with its dashes
    const char* letter; // "-p" or ""
    const char* value;  // what the help calls the value; empty for a switch
    unsigned scope;
    const char* help;
    void (*apply)(Options&, const std::string& value);
};

[[noreturn]] void usage(const std::string& message) {
    throw Failure(kExitUsage, message);
}

// "3G", "2.5GB", "800M", "1073741824": bytes, units of 1024.
uint64_t parse_bytes(const std::string& name, const std::string& text) {
    const char* begin = text.c_str();
    char* end = nullptr;
    const double number = std::strtod(begin, &end);
    std::string unit(end);
    for (char& c : unit)
        c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c;
    double factor = 0;
    const char* units = "BKMGT";
    for (int i = 0; units[i] != 0; ++i) {
        const std::string letter(1, units[i]);
        if (unit == letter || (i > 0 && (unit == letter + "B" || unit == letter + "IB")))
            factor = std::ldexp(1.0, 10 * i);
    }
    if (unit.empty()) factor = 1;
    if (end == begin || factor == 0 || !(number > 0) || number * factor >= 9e18)
        usage(name + " " + text + ": expected an amount of memory such as 3G or 800M");
    return static_cast<uint64_t>(number * factor);
}

// clang-format off
const Spec kSpecs[] = {
    {"Picture", "--prompt", "-p", "TEXT", kDrawing, "what to draw; - reads it from standard input",
     [](Options& o, const std::string& v) { o.prompt = v; }},
    {"Picture", "--width", "-W", "PIXELS", kDrawing, "a multiple of 16 (default: the model's)",
     [](Options& o, const std::string& v) { o.width = parse_count("--width", v, 1, kMaxPixels); }},
    {"Picture", "--height", "-H", "PIXELS", kDrawing, "likewise",
     [](Options& o, const std::string& v) { o.height = parse_count("--height", v, 1, kMaxPixels); }},
    {"Picture", "--size", "", "WxH", kDrawing, "both at once, e.g. 768x512",
     [](Options& o, const std::string& v) { parse_size("--size", v, o); }},
    {"Picture", "--steps", "", "N", kDrawing, "denoising steps (default: the model's)",
     [](Options& o, const std::string& v) { o.steps = parse_count("--steps", v, 1, kMaxSteps); }},
    {"Picture", "--seed", "-s", "N", kDrawing, "0 to 2^64-1; random when not given, always printed",
     [](Options& o, const std::string& v) { o.seed = parse_unsigned("--seed", v, UINT64_MAX); }},
    {"Picture", "--images", "-n", "N", kDrawing, "draw N pictures with seeds SEED, SEED+1, ...",
     [](Options& o, const std::string& v) { o.images = parse_count("--images", v, 1, 10000); }},
    {"Picture", "--guidance", "", "X", kDrawing, "classifier-free guidance; distilled models ignore it",
     [](Options& o, const std::string& v) { o.guidance = parse_float("--guidance", v, 0, 1000); }},
    {"Picture", "--shift", "", "X", kDrawing, "static timestep shift instead of the model's schedule",
     [](Options& o, const std::string& v) { o.shift = parse_float("--shift", v, 1e-3f, 1000); }},
    {"Picture", "--noise-dtype", "", "TYPE", kDrawing, "round the start noise to f32, f16 or bf16 (default f32)",
     [](Options& o, const std::string& v) { o.noise_dtype = parse_choice("--noise-dtype", v, dtype_names()); }},
    {"Picture", "--timestep-dtype", "", "TYPE", kDrawing, "round the timesteps likewise",
     [](Options& o, const std::string& v) { o.timestep_dtype = parse_choice("--timestep-dtype", v, dtype_names()); }},
    {"Picture", "--from", "", "PNG", kDrawing, "repeat a picture that bonsai drew; options given beside it win",
     [](Options& o, const std::string& v) { o.from = v; }},
    {"Picture", "--save-embeds", "", "FILE", kDrawing, "also write what the text encoder makes of the prompt",
     [](Options& o, const std::string& v) { o.save_embeds = v; }},
    {"Picture", "--load-embeds", "", "FILE", kDrawing, "draw the prompt of such a file, without the text encoder",
     [](Options& o, const std::string& v) { o.load_embeds = v; }},

    {"Model and device", "--model", "-m", "FILE", kDrawing | kModelFile, "GGUF file or hub:owner/name (default: $BONSAI_MODEL, or installed)",
     [](Options& o, const std::string& v) { o.model = v; }},
    {"Model and device", "--device", "", "ID", kDrawing | kMachine, "auto, or an id that --list-devices shows",
     [](Options& o, const std::string& v) { o.device = v; }},
    {"Model and device", "--threads", "-t", "N", kDrawing | kMachine, "default: the physical cores this process may use",
     [](Options& o, const std::string& v) { o.threads = parse_count("--threads", v, 1, 4096); }},
    {"Model and device", "--precision", "", "MODE", kDrawing, "fast (int8 activations, default) or exact (float)",
     [](Options& o, const std::string& v) { o.precision = parse_choice("--precision", v, precision_names()); }},
    {"Model and device", "--max-memory", "", "SIZE", kDrawing, "stay below e.g. 1G: weights block by block, decoding in strips",
     [](Options& o, const std::string& v) { o.max_memory = parse_bytes("--max-memory", v); }},

    {"Output", "--output", "-o", "PATH", kDrawing, "PNG file or folder, - for standard output (default: a new name)",
     [](Options& o, const std::string& v) { o.output = v; }},
    {"Output", "--json", "", "", kEverywhere, "results as JSON, one line for each picture",
     [](Options& o, const std::string&) { o.json = true; }},
    {"Output", "--quiet", "-q", "", kEverywhere, "only errors, and the seed when it is random",
     [](Options& o, const std::string&) { o.verbosity = 0; }},
    {"Output", "--verbose", "-v", "", kEverywhere, "also model, device and settings",
     [](Options& o, const std::string&) { o.verbosity = 2; }},

    {"Instead of drawing", "--dry-run", "", "", kDrawing, "say what memory each stage would take, and whether it fits",
     [](Options& o, const std::string&) { o.command = Command::kDryRun; }},
    {"Instead of drawing", "--list-devices", "", "", kEverywhere, "the devices of this machine",
     [](Options& o, const std::string&) { o.command = Command::kDevices; }},
    {"Instead of drawing", "--version", "", "", kEverywhere, "print the version",
     [](Options& o, const std::string&) { o.command = Command::kVersion; }},
    {"Instead of drawing", "--help", "-h", "", kEverywhere, "print this text",
     [](Options& o, const std::string&) { o.command = Command::kHelp; }},
};
// clang-format on

const Spec* find_spec(const std::string& name) {
    for (const Spec& spec : kSpecs)
        if (name == spec.name || (spec.letter[0] != 0 && name == spec.letter)) return &spec;
    return nullptr;
}

std::vector<std::string> option_names() {
    std::vector<std::string> names;
    for (const Spec& spec : kSpecs)
        names.emplace_back(spec.name);
    return names;
}

// What other programs that draw call it.
struct ForeignName {
    const char* theirs;
    const char* ours;
};
const ForeignName kForeignNames[] = {
    {"--batch-count", "--images"},        {"--cfg-scale", "--guidance"},
    {"--diffusion-model", "--model"},     {"--flow-shift", "--shift"},
    {"--guidance-scale", "--guidance"},   {"--num-images-per-prompt", "--images"},
    {"--num-inference-steps", "--steps"},
};

[[noreturn]] void unknown_option(const std::string& name) {
    for (const ForeignName& foreign : kForeignNames)
        if (name == foreign.theirs)
            usage("unknown option " + name + "; here it is " + foreign.ours +
                  " (bonsai-cli --help lists them)");
    if (name == "--negative-prompt")
        usage("unknown option " + name + "; these models know no negative prompt, leave it out");
    usage("unknown option " + name + did_you_mean(name, option_names()) +
          " (bonsai-cli --help lists them)");
}

// The parser's place in the arguments, and what it has made of them.
struct Parser {
    const std::vector<std::string>& arguments;
    size_t next;
    unsigned scope;
    Options options;

    // Splits --name=value and -Xvalue; takes the next argument as the value where there is none
    // inside.
    void option(const std::string& argument) {
        const bool is_long = argument.compare(0, 2, "--") == 0;
        const size_t split = is_long ? argument.find('=') : 2;
        const std::string name = argument.substr(0, split);
        const Spec* spec = find_spec(name);
        if (spec == nullptr) unknown_option(is_long ? name : argument);
        if ((spec->scope & scope) == 0)
            usage(std::string(spec->name) + " has no meaning for " + arguments[0]);
        const bool attached = split != std::string::npos && argument.size() > split;
        std::string value = attached ? argument.substr(split + (is_long ? 1 : 0)) : "";
        if (spec->value[0] == 0) {
            if (attached) usage(std::string(spec->name) + " takes no value, found " + argument);
        } else if (!attached) {
            value = take_value(*spec);
        }
        spec->apply(options, value);
    }

    std::string take_value(const Spec& spec) {
        const std::string missing =
            std::string(spec.name) + " needs a value: " + spec.name + " " + spec.value;
        if (next >= arguments.size()) usage(missing);
        const std::string& value = arguments[next];
        const std::string head = value.substr(0, value.find('='));
        if (value.size() > 1 && value[0] == '-' && find_spec(head) != nullptr)
            usage(missing + "; found the option " + value + " (to pass it as text, write " +
                  spec.name + "=" + value + ")");
        ++next;
        return value;
    }

    void positional(const std::string& argument) {
        if (scope == kModelFile && !options.model) {
            options.model = argument;
            return;
        }
        if (scope == kMachine)
            usage("unexpected argument " + argument + ": " + arguments[0] + " takes options only");
        if (scope == kModelFile)
            usage("unexpected argument " + argument + ": " + arguments[0] + " takes one MODEL");
        const bool general = argument == "help" || argument == "version";
        const std::string guess = next != 1 ? ""
                                  : general ? "--" + argument
                                            : nearest(argument, {"info", "verify", "doctor"});
        usage("unexpected argument " + argument +
              (guess.empty() ? "; the prompt goes behind -p, in quotes: -p \"" + argument + "\""
                             : "; did you mean " + guess + "?"));
    }
};

} // namespace

uint64_t parse_unsigned(const std::string& name, const std::string& text, uint64_t max) {
    const bool hex = text.size() > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    char* end = nullptr;
    errno = 0;
    const unsigned long long value = std::strtoull(text.c_str(), &end, hex ? 16 : 10);
    if (text.empty() || text[0] < '0' || text[0] > '9' || *end != 0 || errno == ERANGE ||
        value > max)
        usage(name + " " + text + ": expected a whole number from 0 to " + std::to_string(max));
    return value;
}

int32_t parse_count(const std::string& name, const std::string& text, int32_t min, int32_t max) {
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    const bool number = !text.empty() && (text[0] == '-' || (text[0] >= '0' && text[0] <= '9'));
    if (!number || *end != 0 || errno == ERANGE || value < min || value > max)
        usage(name + " " + text + ": expected a whole number from " + std::to_string(min) + " to " +
              std::to_string(max));
    return static_cast<int32_t>(value);
}

float parse_float(const std::string& name, const std::string& text, float min, float max) {
    char* end = nullptr;
    const float value = std::strtof(text.c_str(), &end);
    if (text.empty() || *end != 0 || !(value >= min && value <= max)) {
        char range[64];
        std::snprintf(range, sizeof(range), "%g to %g", static_cast<double>(min),
                      static_cast<double>(max));
        usage(name + " " + text + ": expected a number from " + range);
    }
    return value;
}

void parse_size(const std::string& name, const std::string& text, Options& options) {
    const size_t x = text.find_first_of("xX");
    if (x == std::string::npos || x == 0 || x + 1 == text.size())
        usage(name + " " + text + ": expected width and height such as 768x512");
    options.width = parse_count(name + " (width)", text.substr(0, x), 1, kMaxPixels);
    options.height = parse_count(name + " (height)", text.substr(x + 1), 1, kMaxPixels);
}

int32_t parse_choice(const std::string& name, const std::string& text,
                     const std::vector<std::string>& choices) {
    std::string all;
    for (size_t i = 0; i < choices.size(); ++i) {
        if (choices[i] == text) return static_cast<int32_t>(i);
        all += (i == 0 ? "" : i + 1 == choices.size() ? " or " : ", ") + choices[i];
    }
    usage(name + " " + text + ": expected " + all + did_you_mean(text, choices));
}

const std::vector<std::string>& dtype_names() {
    static const std::vector<std::string> names = {"f32", "f16", "bf16"};
    return names;
}

const std::vector<std::string>& precision_names() {
    static const std::vector<std::string> names = {"fast", "exact"};
    return names;
}

Options parse_options(const std::vector<std::string>& arguments) {
    Parser parser{arguments, 0, kDrawing, {}};
    const std::string first = arguments.empty() ? "" : arguments[0];
    if (first == "info" || first == "verify" || first == "doctor") {
        parser.options.command = first == "info"     ? Command::kInfo
                                 : first == "verify" ? Command::kVerify
                                                     : Command::kDoctor;
        parser.scope = first == "doctor" ? kMachine : kModelFile;
        parser.next = 1;
    }
    while (parser.next < arguments.size()) {
        const std::string& argument = arguments[parser.next++];
        if (argument.size() > 1 && argument[0] == '-')
            parser.option(argument);
        else
            parser.positional(argument);
    }
    const Options& o = parser.options;
    if (o.load_embeds && o.prompt)
        usage("--load-embeds brings a prompt of its own: leave --prompt out");
    if (o.load_embeds && o.save_embeds)
        usage("--load-embeds and --save-embeds exclude each other: copy the file");
    if (o.command == Command::kDraw && !o.prompt && !o.from && !o.load_embeds)
        usage("no prompt; for example: bonsai-cli -p \"a red apple on a blue background\"");
    return o;
}

std::string help_text() {
    std::string out =
        "Draws pictures from text with 1-bit and ternary diffusion transformers.\n\n"
        "Usage:\n"
        "  bonsai-cli -p TEXT [-m MODEL] [-o PICTURE.png] [options]\n"
        "  bonsai-cli info [MODEL] [--json]    describe a GGUF file\n"
        "  bonsai-cli verify [MODEL]           compare all weights with their hashes\n"
        "  bonsai-cli doctor [--json]          test whether this machine computes rightly\n";
    const char* group = "";
    for (const Spec& spec : kSpecs) {
        if (group != std::string(spec.group))
            out += std::string("\n") + (group = spec.group) + ":\n";
        std::string left = std::string("  ") + (spec.letter[0] != 0 ? spec.letter : "  ") +
                           (spec.letter[0] != 0 ? ", " : "  ") + spec.name;
        if (spec.value[0] != 0) left += std::string(" ") + spec.value;
        left.resize(30 > left.size() ? 30 : left.size() + 1, ' ');
        out += left + spec.help + "\n";
    }
    return out +
           "\nEnvironment:\n"
           "  BONSAI_MODEL              the model when -m is not given\n"
           "  BONSAI_CACHE              folder of hub: models (default: ~/.cache/bonsai)\n"
           "  BONSAI_CPU                force a level of CPU instructions: one that doctor lists\n"
           "  NO_COLOR                  no colours\n"
           "\nResults go to standard output, everything else to standard error.\n"
           "\nExit codes:\n"
           "  0    done\n"
           "  1    a result could not be written, or an internal error, or doctor found faults\n"
           "  2    wrong usage: an option or its value\n"
           "  3    a file cannot be read, is damaged or is not supported\n"
           "  4    not enough memory\n"
           "  130  interrupted by Ctrl-C (143: terminated); a second Ctrl-C ends at once\n";
}

} // namespace bonsai::cli
