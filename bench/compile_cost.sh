#!/usr/bin/env bash
# bench/compile_cost.sh [ROUNDS]: what including psae costs, beside the standard headers that most programs include anyway.
# User seconds of g++ -O0, -fsyntax-only and -c; the files take turns in every round, and medians and ratios are printed.
# CXX names another compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
compiler=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

include() { printf '#include <%s>\n' "$@"; }
include vector string span filesystem functional >"$work/standard.cpp"
include psae/psae.hpp >"$work/psae.cpp"
(cd include && include psae/core/*.hpp psae/expr/*.hpp) >"$work/core_and_expr.cpp"

TIMEFORMAT=%U
for mode in -fsyntax-only -c; do
    for round in $(seq "$rounds"); do
        for file in standard psae core_and_expr; do
            { time "$compiler" -std=c++20 -O0 -fopenmp $mode -Iinclude -o /dev/null "$work/$file.cpp"; } 2>>"$work/$file$mode"
        done
    done
    median() { sort -n "$work/$1$mode" | sed -n "$(((rounds + 1) / 2))p"; }
    standard=$(median standard)
    for file in standard psae core_and_expr; do
        awk -v mode="$mode" -v file="$file" -v t="$(median "$file")" -v s="$standard" \
            'BEGIN { printf "%-14s %-14s %5.2f s  %4.2f times\n", mode, file, t, t / s }'
    done
done
