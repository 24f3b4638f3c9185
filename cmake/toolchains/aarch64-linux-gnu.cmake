# SPDX-License-Identifier: Apache-2.0
# 64-bit ARM Linux on another machine; tests run under qemu-user when it is there:
#   apt install g++-aarch64-linux-gnu qemu-user
#   cmake -B build-arm -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/aarch64-linux-gnu.cmake -DBONSAI_BUILD_TESTS=ON
# The processor to play is chosen when a test runs: QEMU_CPU=cortex-a72 ctest --test-dir build-arm
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

find_program(bonsai_qemu qemu-aarch64)
if(bonsai_qemu)
    set(CMAKE_CROSSCOMPILING_EMULATOR ${bonsai_qemu} -L /usr/aarch64-linux-gnu)
endif()
