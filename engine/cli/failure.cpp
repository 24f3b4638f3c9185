// SPDX-License-Identifier: Apache-2.0
#include "failure.h"

#include "signals.h"

namespace bonsai::cli {

void check(bonsai_status status, int io_exit) {
    const auto raise = [](int code) { throw Failure(code, bonsai_last_error()); };
    switch (status) {
    case BONSAI_OK:
        return;
    case BONSAI_ERR_ARGUMENT:
        return raise(kExitUsage);
    case BONSAI_ERR_IO:
        return raise(io_exit);
    case BONSAI_ERR_FORMAT:
    case BONSAI_ERR_UNSUPPORTED:
        return raise(kExitModel);
    case BONSAI_ERR_MEMORY:
        return raise(kExitMemory);
    case BONSAI_ERR_CANCELLED:
        stop_if_signalled();
        return raise(kExitFailure);
    case BONSAI_ERR_INTERNAL:
        break;
    }
    raise(kExitFailure);
}

} // namespace bonsai::cli
