// SPDX-License-Identifier: Apache-2.0
// bonsai-cli: the engine on the command line. Uses nothing but bonsai.h.
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#if defined(_WIN32)
#include <windows.h>

#include <shellapi.h>
#endif

#include "commands.h"
#include "failure.h"
#include "signals.h"

namespace bonsai::cli {
namespace {

// The arguments behind the program's name, in UTF-8.
std::vector<std::string> read_arguments(int argc, char** argv) {
    std::vector<std::string> out;
#if defined(_WIN32)
    SetConsoleOutputCP(CP_UTF8);
    (void)argv;
    wchar_t** wide = CommandLineToArgvW(GetCommandLineW(), &argc);
    for (int i = 1; wide != nullptr && i < argc; ++i) {
        std::string utf8(WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, nullptr, 0, nullptr, nullptr),
                         0);
        WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, &utf8[0], static_cast<int>(utf8.size()),
                            nullptr, nullptr);
        utf8.pop_back(); // the NUL
        out.push_back(utf8);
    }
    LocalFree(wide);
#else
    for (int i = 1; i < argc; ++i)
        out.emplace_back(argv[i]);
#endif
    return out;
}

void run(const Options& options, Console& console) {
    switch (options.command) {
    case Command::kDraw:
        return run_draw(options, console);
    case Command::kDryRun:
        return run_dry_run(options, console);
    case Command::kInfo:
        return run_info(options);
    case Command::kVerify:
        return run_verify(options, console);
    case Command::kDoctor:
        return run_doctor(options);
    case Command::kDevices:
        return run_devices(options);
    case Command::kVersion:
        std::printf("bonsai-cli %s\n", bonsai_version());
        return;
    case Command::kHelp:
        std::fputs(help_text().c_str(), stdout);
        return;
    }
}

// Runs, and says on standard error what went wrong.
int guarded(const std::vector<std::string>& arguments) {
    Console plain(0);
    try {
        const Options options = parse_options(arguments);
        install_signal_handlers();
        Console console(options.verbosity);
        run(options, console);
        // A long text has met the full disk before; what is left may be nothing.
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
            throw Failure(kExitFailure, "cannot write to standard output");
        return kExitOk;
    } catch (const Failure& failure) {
        plain.error(failure.what());
        return failure.exit_code();
    } catch (const std::bad_alloc&) {
        plain.error("not enough memory");
        return kExitMemory;
    } catch (const std::exception& exception) {
        plain.error(exception.what());
        return kExitFailure;
    }
}

} // namespace
} // namespace bonsai::cli

int main(int argc, char** argv) {
    return bonsai::cli::guarded(bonsai::cli::read_arguments(argc, argv));
}
