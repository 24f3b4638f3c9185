#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles the CUDA backend for every processor of a release build, or for those named:
#   bash cmake/cuda_all_architectures.sh BUILD_DIR ["80-real;90a-real"] [CMAKE OPTIONS]
# The program is then started once: it has to run where no driver is.
set -euo pipefail
build=${1:?usage: cuda_all_architectures.sh BUILD_DIR [ARCHITECTURES] [CMAKE OPTIONS]}
architectures=${2:-}
shift $(($# > 1 ? 2 : 1))
cmake -S "$(dirname "$0")/.." -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBONSAI_CUDA=ON -DBONSAI_WERROR=ON \
    ${architectures:+"-DCMAKE_CUDA_ARCHITECTURES=$architectures"} "$@"
cmake --build "$build" -j "$(nproc)" --target bonsai_cuda bonsai-cli
"$build/bin/bonsai-cli" --list-devices
ls -l "$build/bin/bonsai-cli"
