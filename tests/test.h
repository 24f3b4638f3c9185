// SPDX-License-Identifier: Apache-2.0
// A test program in a few lines: TEST(name) { CHECK(x == y); } in any number, and the main function
// comes with the header. A failed CHECK prints where and what and goes on; the program's exit
// status tells.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace test {

struct Case {
    const char* name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}
inline int& failures() {
    static int count = 0;
    return count;
}
inline bool add(const char* name, void (*run)()) {
    cases().push_back({name, run});
    return true;
}
inline void failed(const char* file, int line, const std::string& what) {
    ++failures();
    std::printf("%s:%d: failed: %s\n", file, line, what.c_str());
}

// BONSAI_TEST_BRIEF is set: leave out what takes seconds. An emulated processor takes minutes for
// it.
inline bool brief() {
    static const bool set = std::getenv("BONSAI_TEST_BRIEF") != nullptr;
    return set;
}

} // namespace test

#define TEST(name)                                                                                 \
    static void test_##name();                                                                     \
    static const bool added_##name = ::test::add(#name, test_##name);                              \
    static void test_##name()

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) ::test::failed(__FILE__, __LINE__, #condition);                          \
    } while (0)

// The Status is ok, else its message is printed.
#define CHECK_OK(expression)                                                                       \
    do {                                                                                           \
        const auto check_status = (expression);                                                    \
        if (!check_status.ok())                                                                    \
            ::test::failed(__FILE__, __LINE__,                                                     \
                           #expression + std::string(": ") + check_status.message());              \
    } while (0)

// The Status has the code, and its message contains the text.
#define CHECK_FAILS(expression, error_code, text)                                                  \
    do {                                                                                           \
        const auto check_status = (expression);                                                    \
        if (check_status.code() != (error_code) ||                                                 \
            check_status.message().find(text) == std::string::npos)                                \
            ::test::failed(__FILE__, __LINE__,                                                     \
                           #expression + std::string(" gave: ") + check_status.message());         \
    } while (0)

// A program of several files defines BONSAI_TEST_PART for all but one.
#ifndef BONSAI_TEST_PART
// Runs all cases, or those whose name contains argv[1].
int main(int argc, char** argv) {
    int ran = 0;
    for (const ::test::Case& c : ::test::cases()) {
        if (argc > 1 && std::strstr(c.name, argv[1]) == nullptr) continue;
        const int before = ::test::failures();
        c.run();
        ++ran;
        std::printf("%s %s\n", ::test::failures() == before ? "ok  " : "FAIL", c.name);
    }
    std::printf("%d cases, %d failed checks\n", ran, ::test::failures());
    return ran == 0 || ::test::failures() != 0;
}
#endif
