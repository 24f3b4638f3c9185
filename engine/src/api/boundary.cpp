// SPDX-License-Identifier: Apache-2.0
#include "api/boundary.h"

// An array, since an object with a destructor would have to be registered in each thread, which
// takes memory and ends the process when there is none.
static thread_local char last_error[4096] = "";

namespace bonsai::api {

bonsai_status finish(const Status& status) noexcept {
    if (!status.ok()) set_text(last_error, status.message());
    return static_cast<bonsai_status>(status.code());
}

Status require(std::initializer_list<PointerArgument> arguments) {
    for (const PointerArgument& argument : arguments)
        if (!argument.value) return fail(ErrorCode::kArgument, "%s is NULL", argument.name);
    return Status();
}

} // namespace bonsai::api

extern "C" const char* bonsai_last_error(void) {
    return last_error;
}
