#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Proves that the fuzz targets find faults: builds each planted one (engine/src/core/planted.h) and lets its target
# search for at most a minute, beginning with the seeds.
#   tests/fuzz/planted.sh BUILD      BUILD: a CMake build folder made with -DBONSAI_BUILD_FUZZ=ON
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
programs=$build/tests/fuzz
jobs=$(nproc)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"; cmake -DBONSAI_PLANT_BUG=0 "$build" > /dev/null' EXIT
export UBSAN_OPTIONS=halt_on_error=1
"$programs/make_seeds" "$scratch/seeds"
missed=0
fault=0
for target in gguf png prompt tokenizer; do # of faults 1, 2, 3, 4
    fault=$((fault + 1))
    cmake -DBONSAI_PLANT_BUG=$fault "$build" > /dev/null
    cmake --build "$build" -j "$jobs" --target "fuzz_$target" > "$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; exit 1; }
    folders=("$scratch/new$fault")
    mkdir -p "${folders[0]}"
    for seeds in "$here/corpus/$target" "$scratch/seeds/$target"; do
        [ -d "$seeds" ] && folders+=("$seeds")
    done
    began=$(date +%s.%N)
    if "$programs/fuzz_$target" -max_total_time=60 -timeout=5 -rss_limit_mb=2048 -malloc_limit_mb=1024 \
        -dict="$here/dict/$target.dict" -artifact_prefix="$scratch/" "${folders[@]}" > "$scratch/log" 2>&1; then
        echo "fault $fault: fuzz_$target missed it in 60 s"
        missed=1
    else
        printf 'fault %d: fuzz_%s found it in %.1f s: %s\n' "$fault" "$target" \
            "$(awk "BEGIN { print $(date +%s.%N) - $began }")" "$(grep -am1 'SUMMARY' "$scratch/log")"
    fi
done
exit $missed
