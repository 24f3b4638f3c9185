#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs all fuzz targets side by side:
#   tests/fuzz/run.sh PROGRAMS SECONDS [WORKERS [OUT]]
# PROGRAMS: where fuzz_gguf and its kin are; WORKERS: processes a target (1). They begin with all seeds and findings of
# old that lie in corpus/ beside this script and with those of make_seeds. With OUT the smallest inputs that reach
# all that was reached are left in OUT/corpus/TARGET, beside OUT/summary.txt and OUT/findings.
# Exit status 1 if anything was found.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
programs=$(cd "$1" && pwd)
seconds=$2
workers=${3:-1}
keep=${4:-}
out=${4:-$(mktemp -d)}
mkdir -p "$out/findings" "$out/logs" "$out/raw" "$out/corpus" "$out/seeds"
out=$(cd "$out" && pwd)
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=1}
limits=(-timeout=5 -rss_limit_mb=2048 -malloc_limit_mb=1024)

seeds_of() { # folders with seeds for a target
    local folder
    for folder in "$here/corpus/$1" "$out/seeds/$1"; do
        [ -d "$folder" ] && printf '%s\n' "$folder"
    done
}

# One process until the time is over; it begins again after a finding. Half of the workers also follow the values of
# comparisons. Leaves the processor time of its children in logs/TARGET.N.times.
worker() {
    local target=$1 number=$2 end=$((SECONDS + seconds)) round=0 folders
    mapfile -t folders < <(seeds_of "$target")
    while [ $((end - SECONDS)) -gt 1 ] && [ $round -lt 20 ]; do
        round=$((round + 1))
        "$programs/fuzz_$target" "${limits[@]}" -max_total_time=$((end - SECONDS)) -reload=5 -print_final_stats=1 \
            -use_value_profile=$((number % 2)) -dict="$here/dict/$target.dict" \
            -artifact_prefix="$out/findings/$target-" "$out/raw/$target" "${folders[@]}" \
            > "$out/logs/$target.$number.$round" 2>&1
    done
    times > "$out/logs/$target.$number.times"
}

# The smallest inputs that reach what all reached; all of them if that takes too long.
minimise() {
    local target=$1 folders
    mapfile -t folders < <(seeds_of "$target")
    mkdir -p "$out/corpus/$target"
    timeout 45 "$programs/fuzz_$target" "${limits[@]}" -merge=1 "$out/corpus/$target" "$out/raw/$target" \
        "${folders[@]}" > "$out/logs/$target.merge" 2>&1 || cp -r "$out/raw/$target/." "$out/corpus/$target/"
    timeout 30 "$programs/fuzz_$target" "${limits[@]}" -runs=0 "$out/corpus/$target" > "$out/logs/$target.final" 2>&1
}

summary() {
    printf '%-10s %12s %12s %8s %9s %8s %9s\n' target runs cpu_seconds edges features inputs findings
    local target
    for target in $targets; do
        local runs cpu last
        runs=$(grep -ah '^stat::number_of_executed_units' "$out/logs/$target."* | awk '{ n += $2 } END { print n + 0 }')
        cpu=$(tail -qn 1 "$out/logs/$target."*.times | tr 'ms' '  ' | awk '{ t += 60 * $1 + $2 + 60 * $3 + $4 } END { print int(t) }')
        # Without a minimised corpus: what the first process knew in the end.
        last=$(cat "$out/logs/$target.1."[0-9]* "$out/logs/$target.final" 2> /dev/null | grep -a 'INITED\|DONE' | tail -n 1)
        printf '%-10s %12s %12s %8s %9s %8s %9s\n' "$target" "$runs" "$cpu" \
            "$(sed 's/.*cov: \([0-9]*\).*/\1/' <<< "$last")" "$(sed 's/.*ft: \([0-9]*\).*/\1/' <<< "$last")" \
            "$(find "$out/raw/$target" "$out/corpus/$target" -type f 2> /dev/null | wc -l)" \
            "$(find "$out/findings" -name "$target-*" | wc -l)"
    done
}

targets=""
for program in "$programs"/fuzz_*; do
    [ -x "$program" ] && [ -f "$program" ] && targets+=" ${program##*/fuzz_}"
done
"$programs/make_seeds" "$out/seeds"
for target in $targets; do
    if [ -f "$here/corpus/$target.tar.xz" ]; then
        (cd "$out/seeds" && python3 -m tarfile -e "$here/corpus/$target.tar.xz")
    fi
    mkdir -p "$out/raw/$target"
    for number in $(seq "$workers"); do
        worker "$target" "$number" &
    done
done
wait
if [ -n "$keep" ]; then
    for target in $targets; do
        minimise "$target" &
    done
    wait
fi
summary | tee "$out/summary.txt"
found=$(ls "$out/findings")
if [ -n "$found" ]; then # what the sanitizer or the target said
    grep -ah -A 25 'ERROR: \|runtime error\|broken promise' "$out"/logs/*.[0-9]* | head -n 200
    printf 'findings, kept in %s:\n%s\n' "$out/findings" "$found"
    exit 1
fi
[ -n "$keep" ] || rm -rf "$out"
