// SPDX-License-Identifier: Apache-2.0
// One function for each thing the program does. They throw Failure; main turns that into an exit
// code.
#pragma once

#include "console.h"
#include "options.h"

namespace bonsai::cli {

void run_draw(Options options, Console& console);
void run_dry_run(Options options, Console& console);
// The memory that each stage takes, as notes: for a picture that there was not enough for.
void note_plan(bonsai_context* context, const Options& options, Console& console);
void run_info(const Options& options);
void run_verify(const Options& options, Console& console);
void run_devices(const Options& options);
void run_doctor(const Options& options);

} // namespace bonsai::cli
