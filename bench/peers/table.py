"""Medians and ratios of the records that bench/compare.sh left: table.py FOLDER.

Files are named <round>.ours.<program>[.<case>].json and <round>.peer.<program>[.<case>].json. Ours are
Google Benchmark's JSON (median_s, where a benchmark gives it, stands for its time); a pair below names the words that our benchmark's
name must and must not hold (words are runs of letters or of digits: "vit/full/b8" is vit full b 8).
Ratio: peer's seconds over ours, round by round; above 1 we are faster.
"""
import collections
import json
import pathlib
import re
import statistics
import sys

PAIRS = [("sae_step dense (initial L0)", "sae_step dense", "", "sae_step/eager/0"),
         ("sae_step dense (initial L0)", "sae_step dense", "", "sae_step/careful/0"),
         ("sae_step relu, L0 64", "sae_step 64", "topk", "sae_step/eager/64"),
         ("sae_step top 64", "sae_step 64 topk", "", "sae_step/topk/64"),
         ("sae_step top 64", "sae_step 64 topk", "", "sae_step/saelens/64")]
PAIRS += [(f"vit {part}, batch {b}", f"vit {part} {b}", "", f"vit/{part}/b{b}/{engine}")
          for part in ("full", "tap") for b in (1, 8) for engine in ("eager", "compile", "onnxruntime", "openvino")]
PAIRS += [("encode (per image)", "analysis encode", "", "analysis/forward"),
          ("summary and classes (per image)", "analysis summary", "", "analysis/count")]
PAIRS += [(f"preprocess {kind} (per image)", f"preprocess {kind}", "", f"preprocess/{kind}") for kind in ("jpeg", "png", "resize")]
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def words(text):
    text = re.sub(r"/(iterations|repeats|min_time|min_warmup_time|threads):[^/]*", "", text.lower())
    return set(re.findall(r"[a-z]+|\d+", text.replace("sae_step", ""))) | ({"sae_step"} if "sae_step" in text else set())


def load(folder):
    """Two maps {name: {round: [seconds]}}, the notes of single records, and the ceilings of the peers' processes."""
    ours, peers = (collections.defaultdict(lambda: collections.defaultdict(list)) for _ in range(2))
    notes, ceilings = collections.defaultdict(dict), collections.defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        turn, side, *rest = path.name[: -len(".json")].split(".")
        try:
            record = json.loads(path.read_text())
        except ValueError:
            print(f"no record in {path.name}: that run failed, see its .log", file=sys.stderr)
            continue
        if side == "peer":
            ceilings[record["bench"]].append(record["best_gflops"])
            for row in record["rows"]:
                if "error" in row:
                    print(f"{row['case']}: {row['error']}", file=sys.stderr)
                    continue
                name = row["case"]
                if record["bench"] == "sae_step":
                    name += f"/{row['l0_asked'] if not name.endswith('topk') else row['l0']:.0f}"
                per_item = row["ms_per_image"] / 1e3 / row["median_s"] if record["bench"] == "analysis" else 1
                peers[name][turn] += [t * per_item for t in row["all_s"]]
                notes[name] = {k: row[k] for k in ("l0", "peak_rss_mib", "of_five_gemms", "of_ceiling") if k in row}
        elif "benchmarks" in record:
            for row in record["benchmarks"]:
                if row.get("run_type", "iteration") != "iteration" or row.get("error_occurred"):
                    continue
                if rest[0] == "analysis":
                    for part in ("tower", "encode", "summary"):
                        ours[f"analysis/{part}"][turn].append(row[f"{part}_ms_per_image"] / 1e3)
                    continue
                per_item = rest[0] == "preprocess" and row.get("items_per_second")
                name = "/".join([*rest, row["name"]])
                time = row.get("median_s") or (1 / per_item if per_item else row["real_time"] * SECONDS[row["time_unit"]])
                ours[name][turn].append(time)
                notes[name] = {k: v for k, v in row.items() if k.lower() in ("l0", "peak_mib", "x_floor", "x_five_gemms", "of_ceiling")}
    return ours, peers, notes, ceilings


def middle(rounds):
    return statistics.median(s for times in rounds.values() for s in times)


def show(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def main():
    ours, peers, notes, ceilings = load(pathlib.Path(sys.argv[1]))
    print(f"{'what':30} {'ours':>11}  {'peer':24} {'':>11} {'ratio':>6}  rounds")
    for title, wanted, unwanted, peer in PAIRS:
        fits = [n for n in ours if words(wanted) <= words(n) and not words(unwanted) & words(n)]
        if not fits and peer not in peers:
            continue
        if len(fits) > 1:
            print(f"{title}: several of ours fit, the first is taken: {', '.join(fits)}", file=sys.stderr)
        mine, theirs = ours.get(fits[0]) if fits else None, peers.get(peer)
        line = f"{title:30} {show(middle(mine)) if mine else '-':>11}  {peer.split('/', 1)[1]:24} {show(middle(theirs)) if theirs else '-':>11}"
        common = sorted(set(mine) & set(theirs)) if mine and theirs else []
        if common:
            ratios = [statistics.median(theirs[r]) / statistics.median(mine[r]) for r in common]
            line += f" {statistics.median(ratios):6.2f}  {min(ratios):.2f}-{max(ratios):.2f} of {len(ratios)}"
        print(line)
    print()
    for name in [n for n in (*ours, *peers) if notes[n]]:
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in notes[name].items()))
    for bench, rates in ceilings.items():
        print(f"GEMM ceiling in the peers' {bench} processes: {min(rates):.0f}-{max(rates):.0f} GFLOP/s, median {statistics.median(rates):.0f}")


if __name__ == "__main__":
    main()
