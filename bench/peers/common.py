"""What the peer scripts share: timing, the GEMM ceiling of the process, and the JSON record."""
import json
import os
import resource
import statistics
import sys
import time


def summary(seconds):
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "all_s": list(seconds)}


def measure(call, repeats, warm=1):
    """Seconds of `repeats` calls after `warm` untimed ones; cores_busy shows whether others competed."""
    for _ in range(warm):
        call()
    wall, busy = [], []
    for _ in range(repeats):
        cpu0, t0 = time.process_time(), time.perf_counter()
        call()
        t1, cpu1 = time.perf_counter(), time.process_time()
        wall.append(t1 - t0)
        busy.append((cpu1 - cpu0) / (t1 - t0))
    return {**summary(wall), "cores_busy": round(statistics.median(busy), 2)}


def gemm_times(products, repeats=3):
    """Times torch.mm on {name: (rows, inner, cols, transposed operand: '', 'a' or 'b')}, fp32.

    Returns {name: {gflops (of the median), gflops_best, median_s, min_s, all_s}}.
    """
    import torch

    report = {}
    for name, (rows, inner, cols, flip) in products.items():
        left = torch.rand(inner, rows).t() if flip == "a" else torch.rand(rows, inner)
        right = torch.rand(cols, inner).t() if flip == "b" else torch.rand(inner, cols)
        target = torch.empty(rows, cols)
        t = measure(lambda: torch.mm(left, right, out=target), repeats)
        work = 2e-9 * rows * inner * cols
        report[name] = {"gflops": work / t["median_s"], "gflops_best": work / t["min_s"], **t}
    return report


def best_rate(report):
    return max(entry["gflops_best"] for entry in report.values())


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def use_threads(count):
    import torch

    if count:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def processor():
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def print_record(bench, rows, ceiling, **more):
    """The one JSON object on standard output; progress goes to standard error."""
    json.dump({"bench": bench, "cpu": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0], **more,
               "ceiling": ceiling, "peak_rss_mib": peak_mib(), "rows": rows}, sys.stdout, indent=1)
    print(flush=True)


def progress(text):
    print(text, file=sys.stderr, flush=True)
