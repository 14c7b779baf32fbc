#!/usr/bin/env bash
# Checks the CUDA backend on a machine with a GPU and writes one table.
#   tools/gpu_check.sh build [FOLDER]     builds what the check needs (CUDA toolkit, no GPU), default build/gpu_check
#   tools/gpu_check.sh run [FOLDER [OUT]] runs it (a GPU and the CUDA toolkit, no package registry): tests on the GPU (equal
#                                         bytes of equal runs among them), compute-sanitizer, timings; OUT default out/gpu_check
# ARCHITECTURES: those of the GPU (default 90). The folder holds the programs and the libraries that they need beside CUDA's
# and the system's, so it can be taken to another machine. SECONDS_EACH: the most that one check may take (default 90).
set -euo pipefail
cd "$(dirname "$0")/.."
command=${1:-}
folder=${2:-build/gpu_check}

case $command in
build)
    cmake -S . -B "$folder/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPSAE_CUDA=ON -DPSAE_WERROR=ON -DPSAE_EXAMPLES=OFF \
        -DPSAE_BENCH=ON -DPSAE_NATIVE=OFF -DPSAE_GPU_GOLDEN_DIR=tests/golden -DCMAKE_CUDA_ARCHITECTURES="${ARCHITECTURES:-90}"
    cmake --build "$folder/cmake" --target test_cuda bench_gpu
    rm -rf "$folder/programs"
    mkdir -p "$folder/programs"
    for program in tests/test_cuda bench/bench_gpu; do
        cp "$folder/cmake/$program" "$folder/programs/"
        # CUDA's own libraries are where there is a GPU to compute on; the others may not be.
        ldd "$folder/cmake/$program" | awk '$3 ~ /\// && $1 !~ /^lib(c|m|pthread|rt|dl|gcc_s|stdc\+\+|cuda|cublas|cudart)/ {print $3}' |
            xargs -I{} cp -Ln {} "$folder/programs/"
    done
    strip "$folder"/programs/*
    du -sh "$folder/programs"
    ;;
run)
    out=${3:-out/gpu_check}
    mkdir -p "$out"
    export LD_LIBRARY_PATH="$folder/programs:${LD_LIBRARY_PATH:-}"
    table=$out/table.md
    {
        echo "# $(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv,noheader)"
        echo
        echo "$(date -u +%F), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
        echo
    } >"$table"
    row() { # what, command ...: one line of the table, the output in a file
        local what=$1 log status=passed
        shift
        log=$out/$(echo "$what" | tr -c 'a-z0-9\n' '_').log
        timeout "${SECONDS_EACH:-90}" "$@" >"$log" 2>&1 || status="**failed**, see $(basename "$log")"
        echo "| $what | $status: $(tail -n 3 "$log" | grep -E 'passed|failed|ERROR SUMMARY' | tail -n 1) |" >>"$table"
    }
    echo "| check | result |" >>"$table"
    echo "|---|---|" >>"$table"
    row "tests" "$folder/programs/test_cuda"
    # What the sanitizers multiply by a hundred is left out.
    few=("~a run of*" "~*trajectories*" "~*hidden state*")
    for tool in memcheck racecheck synccheck initcheck; do
        if command -v compute-sanitizer >/dev/null; then
            row "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 9 "$folder/programs/test_cuda" "${few[@]}"
        fi
    done
    echo >>"$table"
    timeout "$((2 * ${SECONDS_EACH:-90}))" "$folder/programs/bench_gpu" >>"$table" 2>"$out/bench.log" || echo "bench_gpu failed, see bench.log" >>"$table"
    cat "$table"
    ;;
*)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
