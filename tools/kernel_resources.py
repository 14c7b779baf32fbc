#!/usr/bin/env python3
"""What the kernels of an object or program that nvcc built take of a GPU, as a Markdown table. No GPU is needed.

    tools/kernel_resources.py build/cuda/bench/bench_gpu --match 'psae::' --launch 'attention_kernel<float, 64u>=128,44032'

For each kernel: registers, shared memory of a block (the system's own 1 KiB included), stack, barriers; threads of a block
and the share of a multiprocessor's 64 warps that can be there at once; and what stands in its machine code, counted once
however often it runs:
    loads, stores   of global memory, those of 16 bytes / of 8 / narrower ones
    local           of local memory: spilled registers, arrays with an index
    divisions       of integers
    calls           of slow paths that are functions: divisions, square roots
    tensor          instructions of the tensor cores

Threads and dynamic shared memory are known where a kernel starts: of --launch REGEX=THREADS[,BYTES] the first whose
expression is found in a kernel's name says them, else its launch bounds do, else --threads. Limits are those of the compute
capability 9.0 (CUDA C++ Programming Guide, "Compute Capabilities"; Hopper Tuning Guide, "Occupancy").
Needs cuobjdump and c++filt; CUOBJDUMP names another than the PATH's.
"""
import argparse
import collections
import os
import re
import subprocess

REGISTERS, SHARED, WARPS, BLOCKS = 65536, 228 * 1024, 64, 32  # of a multiprocessor
SYSTEM_SHARED = 1024  # of each block; in the object's figure only where a kernel of the object has shared memory of its own
REGISTERS_OF_WARP, WARPS_AT_ONCE, SHARED_OF_BLOCK = 256, 4, 128  # what they are given out in


def up_to_multiple(number, of):
    return -(-number // of) * of


def warps_of_multiprocessor(registers, shared, threads):
    """How many warps of such blocks a multiprocessor holds at once."""
    warps = -(-threads // 32)
    by_registers = REGISTERS // up_to_multiple(32 * registers, REGISTERS_OF_WARP) // WARPS_AT_ONCE * WARPS_AT_ONCE
    by_shared = SHARED // max(1, up_to_multiple(shared, SHARED_OF_BLOCK))
    return min(by_registers // warps, by_shared, BLOCKS, WARPS // warps) * warps


def read_object(path, architecture):
    """{mangled name: {"registers", "shared", "stack", "bounds" or None, "code": Counter of instructions}}"""

    def dump(what):
        command = [os.environ.get("CUOBJDUMP", "cuobjdump"), "--gpu-architecture", architecture, what, path]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()

    kernels, name, attribute = {}, None, None
    for line in dump("--dump-resource-usage"):
        if found := re.match(r" Function (\S+):", line):
            name = found[1]
        elif found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            registers, stack, shared = map(int, found.groups())
            kernels[name] = dict(registers=registers, stack=stack, shared=shared, bounds=None,
                                 code=collections.Counter())
    for line in dump("--dump-elf"):
        if found := re.match(r"\.nv\.info\.(\S+)", line):
            name = found[1]
        elif found := re.match(r"\s*Attribute:\s*(\S+)", line):
            attribute = found[1]
        elif attribute == "EIATTR_MAX_THREADS" and (found := re.match(r"\s*Value:\s*0x(\w+) 0x(\w+) 0x(\w+)", line)):
            x, y, z = (int(n, 16) for n in found.groups())
            kernels[name]["bounds"] = x * y * z
    for line in dump("--dump-sass"):
        if found := re.match(r"\s*Function : (\S+)", line):
            name = found[1]
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line):
            kernels[name]["code"][found[1]] += 1
    return kernels


def short_names(mangled):
    """Without the return type, the parameters, and the namespaces of this project."""
    text = subprocess.run(["c++filt"], input="\n".join(mangled), stdout=subprocess.PIPE, check=True, text=True).stdout
    names = []
    for name in text.splitlines():
        depth = 0
        for i, c in enumerate(name):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                name = name[:i]
                break
        name = name.removeprefix("void ").replace("18446744073709551615ul", "dyn").replace("(psae::space)1", "device")
        names.append(name)
    return names


def count(code, *prefixes):
    return sum(n for instruction, n in code.items() if instruction.startswith(prefixes))


def by_width(code, *prefixes):
    narrow = {".128": 0, ".64": 0, "": 0}
    for instruction, n in code.items():
        if instruction.startswith(prefixes):
            narrow[next(width for width in narrow if width in instruction)] += n
    return "/".join(map(str, narrow.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", metavar="OBJECT")
    parser.add_argument("--match", default="", metavar="REGEX", help="only kernels in whose names this is found")
    parser.add_argument("--launch", action="append", default=[], metavar="REGEX=THREADS[,BYTES]")
    parser.add_argument("--threads", type=int, default=256, help="of a block of which nothing else is known (256)")
    parser.add_argument("--arch", default="sm_90", help="the architecture whose code is read (sm_90)")
    parser.add_argument("--width", type=int, default=72, help="of a name in the table (72)")
    arguments = parser.parse_args()
    launches = []
    for launch in arguments.launch:
        expression, _, numbers = launch.rpartition("=")
        threads, _, dynamic = numbers.partition(",")
        launches.append((re.compile(expression), int(threads), int(dynamic or 0)))

    kernels = {}
    try:
        for path in arguments.objects:
            kernels.update(read_object(path, arguments.arch))
        names = short_names(kernels)
    except (OSError, subprocess.CalledProcessError) as failed:
        parser.exit(1, f"kernel_resources.py: {failed}\n")
    rows = []
    for name, kernel in zip(names, kernels.values()):
        if not re.search(arguments.match, name):
            continue
        threads, dynamic = kernel["bounds"] or arguments.threads, 0
        for expression, *numbers in launches:
            if expression.search(name):
                threads, dynamic = numbers
                break
        code, shared = kernel["code"], max(kernel["shared"], SYSTEM_SHARED) + dynamic
        occupancy = warps_of_multiprocessor(kernel["registers"], shared, threads) / WARPS
        name = name.replace("psae::detail::", "").replace("psae::", "")
        if len(name) > arguments.width:
            name = name[:arguments.width - 3] + "..."
        rows.append((name, kernel["registers"], shared, kernel["stack"], count(code, "BAR."), threads,
                     f"{occupancy:.0%}", by_width(code, "LDG", "LD."), by_width(code, "STG", "ST."),
                     count(code, "LDL", "STL"), sum(n for i, n in code.items() if re.match(r"I2F\.U(32|64)\.RP", i)),
                     count(code, "CALL"), count(code, "HMMA", "HGMMA", "DMMA", "IMMA")))
    print("| kernel | registers | shared | stack | barriers | threads | occupancy | loads | stores | local | divisions "
          "| calls | tensor |\n|" + "---|" * 13)
    for row in sorted(rows):
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
