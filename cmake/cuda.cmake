# SPDX-License-Identifier: Apache-2.0
# The CUDA compiler and the processors it compiles for. Needed to build only: the runtime is linked in and looks for the
# driver when the program runs, so one binary serves machines with and without a GPU.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(BONSAI_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda /opt/cuda PATH_SUFFIXES bin)
    if(NOT BONSAI_NVCC)
        message(FATAL_ERROR "BONSAI_CUDA needs nvcc of CUDA 12.4 or later, and there is none in PATH, CUDA_PATH or "
                            "/usr/local/cuda: install the CUDA toolkit, give -DCMAKE_CUDA_COMPILER=/path/to/nvcc, or "
                            "configure without -DBONSAI_CUDA=ON")
    endif()
    set(CMAKE_CUDA_COMPILER ${BONSAI_NVCC})
endif()
# Code for each line of processors there is, that of 8.9 as PTX too: drivers compile it for what came after Hopper and is
# not listed. 90a is Hopper with the instructions that only it has; 10.0 and 12.0 are known to CUDA 12.8 and later.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(architectures 75-real 80-real 86-real 89 90a-real)
    if(CMAKE_CUDA_COMPILER)
        set(nvcc ${CMAKE_CUDA_COMPILER})
    else()
        set(nvcc $ENV{CUDACXX})
    endif()
    execute_process(COMMAND ${nvcc} --list-gpu-code OUTPUT_VARIABLE codes ERROR_QUIET)
    foreach(code 100 120)
        if(codes MATCHES "sm_${code}[^0-9]")
            list(APPEND architectures ${code}-real)
        endif()
    endforeach()
    set(CMAKE_CUDA_ARCHITECTURES ${architectures} CACHE STRING "Processors to compile for")
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)
