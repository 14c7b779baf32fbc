#!/usr/bin/env bash
# Checks the CUDA backend on a machine with a GPU and writes one table.
#   tools/gpu_check.sh build [FOLDER]     builds what the check needs (CUDA toolkit, no GPU), default build/gpu_check
#   tools/gpu_check.sh run [FOLDER [OUT]] runs it (a GPU and the CUDA toolkit, no package registry), the most important first:
#                                         tests on the GPU, timings, PyTorch's beside them (if there is a PyTorch),
#                                         compute-sanitizer on some tests; OUT default out/gpu_check, the table OUT/table.md
# ARCHITECTURES: those of the GPU (default 90-real). FOLDER/programs.tar.gz holds the programs, the libraries that they need
# beside CUDA's and the system's, and the commit; it can be taken to another machine. The golden values are this folder's.
# Everything together takes less than 8 minutes: what has not ended by its own limit is said not to have finished.
set -euo pipefail
cd "$(dirname "$0")/.."
command=${1:-}
folder=${2:-build/gpu_check}

case $command in
build)
    cmake -S . -B "$folder/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPSAE_CUDA=ON -DPSAE_WERROR=ON -DPSAE_EXAMPLES=OFF \
        -DPSAE_NATIVE=OFF -DPSAE_GPU_GOLDEN_DIR=tests/golden -DCMAKE_CUDA_ARCHITECTURES="${ARCHITECTURES:-90-real}"
    cmake --build "$folder/cmake" --target test_cuda bench_gpu
    rm -rf "$folder/programs"
    mkdir -p "$folder/programs"
    for program in tests/test_cuda bench/bench_gpu; do
        cp "$folder/cmake/$program" "$folder/programs/"
        # CUDA's own libraries are where there is a GPU to compute on, with a C library; the others may not be, or older.
        ldd "$folder/cmake/$program" | awk '$3 ~ /\// && $1 !~ /^lib(c|m|pthread|rt|dl|cuda[^.]*|cublas[^.]*)\.so/ {print $3}' |
            xargs -I{} cp -Ln {} "$folder/programs/"
    done
    strip "$folder"/programs/*
    git describe --always --dirty >"$folder/programs/commit" 2>/dev/null || echo unknown >"$folder/programs/commit"
    tar -C "$folder" -czf "$folder/programs.tar.gz" programs
    size=$(du -m "$folder/programs.tar.gz" | cut -f1)
    echo "$folder/programs.tar.gz: $size MiB"
    [ "$size" -lt 64 ] || { echo "gpu_check.sh: more than the 64 MiB that travel" >&2; exit 1; }
    ;;
run)
    out=${3:-out/gpu_check}
    mkdir -p "$out"
    tar -C "$folder" -xzf "$folder/programs.tar.gz"
    ours=(env "LD_LIBRARY_PATH=$folder/programs:${LD_LIBRARY_PATH:-}")
    table=$out/table.md
    ask() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1 || true; }
    {
        echo "# $(ask name), $(date -u +%F), commit $(cat "$folder/programs/commit")"
        echo
        echo "Driver $(ask driver_version), $(nvcc --version | grep -o 'release [0-9.]*' || echo 'no nvcc'). Highest clocks:" \
            "$(ask clocks.max.sm) and $(ask clocks.max.mem) of the memory; power limit $(ask power.limit)."
        echo
    } >"$table"

    # What the status says that a command ended with under `timeout`, which kills what does not end when asked to.
    ending() { # status, seconds, log
        case $1 in
        124) echo "**not finished** in $2 s" ;;
        137) echo "**killed**, after $2 s or out of memory" ;;
        *) echo "**failed** (status $1), see $(basename "$3")" ;;
        esac
    }
    check_head() { printf '\n| check | result |\n|---|---|\n' >>"$table"; }
    check() { # seconds, what, command ...: one line of the table, the output in a file
        local seconds=$1 what=$2 log status=passed
        shift 2
        log=$out/$(echo "$what" | tr -c 'a-z0-9\n' '_').log
        timeout -k 5 "$seconds" "$@" >"$log" 2>&1 || status=$(ending $? "$seconds" "$log")
        echo "| $what | $status: $(grep -E 'passed|failed|ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1) |" >>"$table"
    }
    measure() { # seconds, file, command ...: adds what it prints to the table
        local seconds=$1 rows=$out/$2
        shift 2
        timeout -k 5 "$seconds" "$@" >"$rows" 2>"$rows.log" ||
            echo "$(ending $? "$seconds" "$rows.log"): $(tail -n 1 "$rows.log")" >>"$rows"
        { echo; cat "$rows"; } >>"$table"
    }

    check_head
    check 100 "tests" "${ours[@]}" "$folder/programs/test_cuda"
    nvidia-smi --query-gpu=clocks.sm,clocks.mem --format=csv,noheader,nounits -lms 500 >"$out/clocks.csv" 2>/dev/null &
    clocks=$!
    trap 'kill "$clocks" 2>/dev/null || true' EXIT
    measure 90 bench.md "${ours[@]}" "$folder/programs/bench_gpu"
    kill "$clocks" 2>/dev/null || true
    trap - EXIT
    awk -F', ' '{if (NR == 1 || $1 < least) least = $1; if ($1 > most) most = $1; memory = $2}
        END {if (NR) printf "\nClocks meanwhile: %d to %d MHz, memory %d MHz.\n", least, most, memory}' "$out/clocks.csv" >>"$table"
    peers=$((340 - SECONDS))  # torch.compile takes long, so they get what tests and timings have left: at least 135
    measure "$peers" peers.md python3 bench/peers/gpu.py --ours "$out/bench.md" --seconds 60 --all-seconds $((peers - 20))

    # The sanitizers slow a program down a hundredfold, so they see small tests of single kernels. One list with commas: of
    # several arguments Catch runs what matches all. A name that is no test's is an error.
    check_head
    few="encoders on the GPU at the edges*,encoders on the GPU of some latents - float,tiles of codes and the share*"
    few+=",the latent-major view on the GPU - float,sparse decode and its adjoint on the GPU - float"
    few+=",expressions over entries on the GPU - float,update_rows on the GPU*,normalise_rows on the GPU - float"
    few+=",sums on the GPU*,layer_norm on the GPU - float,layer_norm's adjoint on the GPU - float,attention on the GPU"
    few+=",attention of bf16 on the GPU,batches are on the device*"
    for tool in memcheck racecheck initcheck synccheck; do
        if command -v compute-sanitizer >/dev/null; then
            check 25 "compute-sanitizer $tool" "${ours[@]}" compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$folder/programs/test_cuda" -w NoTests "$few"
        else
            echo "| compute-sanitizer $tool | not on this machine |" >>"$table"
        fi
    done
    cat "$table"
    ;;
*)
    sed -n '2,10p' "$0" >&2
    exit 2
    ;;
esac
