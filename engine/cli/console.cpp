// SPDX-License-Identifier: Apache-2.0
#include "console.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(_WIN32)
#include <io.h>
#include <windows.h>
#else
#include <sys/ioctl.h>
#include <unistd.h>
#endif

#include "text.h"

namespace bonsai::cli {
namespace {

bool is_terminal() {
#if defined(_WIN32)
    return _isatty(_fileno(stderr)) != 0;
#else
    const char* term = std::getenv("TERM");
    return isatty(STDERR_FILENO) != 0 && term != nullptr && std::strcmp(term, "dumb") != 0;
#endif
}

size_t terminal_width() {
#if defined(_WIN32)
    CONSOLE_SCREEN_BUFFER_INFO info;
    if (GetConsoleScreenBufferInfo(GetStdHandle(STD_ERROR_HANDLE), &info) && info.dwSize.X > 0)
        return static_cast<size_t>(info.dwSize.X);
#else
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
    const char* columns = std::getenv("COLUMNS");
    const int width = columns != nullptr ? std::atoi(columns) : 0;
    return width > 0 ? static_cast<size_t>(width) : 80;
}

const char* stage_name(int32_t stage) {
    switch (stage) {
    case BONSAI_STAGE_TEXT_ENCODER:
        return "text encoder";
    case BONSAI_STAGE_DENOISE:
        return "denoise";
    case BONSAI_STAGE_VAE:
        return "vae";
    default:
        return "work";
    }
}

// "[2/3] denoise: step 1/4", with the picture's number only where there are several.
std::string heading(const bonsai_progress& p, int32_t step) {
    std::string out;
    if (p.images > 1)
        out = "[" + std::to_string(p.image + 1) + "/" + std::to_string(p.images) + "] ";
    out += stage_name(p.stage);
    if (p.stage == BONSAI_STAGE_DENOISE)
        out += ": step " + std::to_string(step) + "/" + std::to_string(p.steps);
    return out;
}

// ", 12.3 s/step, ETA 0:37", or the ETA alone outside of the steps. Nothing before anything can be
// said.
std::string pace(const bonsai_progress& p) {
    if (p.fraction <= 0 || p.stage_seconds <= 0) return "";
    std::string out;
    if (p.stage == BONSAI_STAGE_DENOISE && p.steps > 0)
        out += ", " + format_seconds(p.stage_seconds / (p.fraction * p.steps)) + "/step";
    if (p.fraction < 1)
        out += ", ETA " + format_clock(p.stage_seconds * (1 - p.fraction) / p.fraction);
    return out;
}

} // namespace

Console::Console(int verbosity) : verbosity_(verbosity), terminal_(is_terminal()) {
    const char* no_color = std::getenv("NO_COLOR");
    color_ = terminal_ && (no_color == nullptr || no_color[0] == 0);
    shown_.stage = -1;
#if defined(_WIN32)
    color_ = false;
#endif
}

// Lines quote file names, prompts and what stands in files.
void Console::print(const char* label, const char* color, const std::string& line) {
    clear();
    std::fprintf(stderr, "%s%s%s%s\n", color_ ? color : "", label,
                 color_ && *color ? "\x1b[0m" : "", one_line(line).c_str());
    std::fflush(stderr);
}

void Console::note(const std::string& line) {
    if (verbosity_ >= 1) print("", "", line);
}
void Console::detail(const std::string& line) {
    if (verbosity_ >= 2) print("", "", line);
}
void Console::always(const std::string& line) {
    print("", "", line);
}
void Console::warning(const std::string& line) {
    if (verbosity_ >= 1) print("warning: ", "\x1b[33m", line);
}
void Console::error(const std::string& line) {
    print("error: ", "\x1b[31m", line);
}

void Console::clear() {
    if (!line_shown_) return;
    std::fprintf(stderr, "\r%*s\r", static_cast<int>(terminal_width() - 1), "");
    std::fflush(stderr);
    line_shown_ = false;
}

// At most ten lines a second: a slow terminal must not hold up the work.
bool Console::due() {
    const auto now = std::chrono::steady_clock::now();
    if (line_shown_ && now - last_ < std::chrono::milliseconds(100)) return false;
    last_ = now;
    return true;
}

void Console::rewrite(const std::string& line) {
    if (!due()) return;
    // One column stays free: some terminals wrap as soon as the last one is written.
    const size_t width = terminal_width() - 1;
    std::string out = line.substr(0, width);
    out.resize(width, ' ');
    std::fprintf(stderr, "\r%s", out.c_str());
    std::fflush(stderr);
    line_shown_ = true;
}

void Console::progress(const bonsai_progress& p) {
    if (verbosity_ < 1) return;
    if (terminal_) {
        char percent[16];
        std::snprintf(percent, sizeof(percent), "  %3.0f%%", 100 * p.fraction);
        // On the line stands the step in work, in the plain lines the step that is done.
        rewrite(heading(p, std::min(p.step + 1, p.steps)) + percent + pace(p));
        return;
    }
    const bool same = shown_.stage == p.stage && shown_.image == p.image;
    if (p.stage == BONSAI_STAGE_DENOISE && p.step > 0 && !(same && shown_.step == p.step)) {
        print("", "", heading(p, p.step) + pace(p));
        shown_ = p;
    } else if (p.stage != BONSAI_STAGE_DENOISE && p.fraction >= 1 && !same) {
        print("", "", heading(p, 0) + ": " + format_seconds(p.stage_seconds));
        shown_ = p;
    }
}

void Console::progress(const std::string& job, double fraction) {
    if (verbosity_ < 1 || !terminal_) return;
    char percent[16];
    std::snprintf(percent, sizeof(percent), "  %3.0f%%", 100 * fraction);
    rewrite(job + percent);
}

} // namespace bonsai::cli
