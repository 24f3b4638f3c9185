# SPDX-License-Identifier: Apache-2.0
# bonsai_every_warning: all that clang can say (-Weverything) but what does not fit this code, each with its reason.
# For library and program, with -DBONSAI_EVERY_WARNING=ON.
set(bonsai_every_warning
    -Weverything
    -Wno-c++98-compat -Wno-c++98-compat-pedantic # this is C++17
    -Wno-padded                                  # about layout, not about faults
    -Wno-unsafe-buffer-usage                     # weights and pictures are raw memory
    -Wno-double-promotion                        # sums are wider than what they add, on purpose
    -Wno-float-equal                             # zero and one are exact and mean "off"
    -Wno-sign-conversion                         # extents are int64_t, those of containers size_t
    -Wno-comma                                   # short steps in a row; -Wunused-value still looks
    -Wno-switch-enum -Wno-switch-default         # each contradicts the other; -Wswitch stays
    -Wno-covered-switch-default
    -Wno-weak-vtables                            # a few kB for classes that live in one header
    -Wno-exit-time-destructors -Wno-global-constructors # tables of the program, no order between them
    -Wno-disabled-macro-expansion                # sigaction of glibc
    -Wno-format-nonliteral                       # the printf of fail(), checked at its callers
    -Wno-unused-template -Wno-unused-member-function # headers of kernels serve several levels,
    -Wno-unused-const-variable                   # whose constants are read by templates only
    -Wno-deprecated-declarations                 # std::stable_sort of libstdc++ 12
    -Wno-unknown-warning-option)                 # other versions of clang
