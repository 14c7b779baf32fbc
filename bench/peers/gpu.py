"""Steps of SAEs and the vision tower in PyTorch on a GPU, beside what bench_gpu measured on the same one.

Prints the rows of a Markdown table, what takes long to compile last. What PyTorch cannot do here (no torch, no Triton or C
compiler, too little memory, out of time) costs its own row only. --ours: bench_gpu's output; with --device cpu and small sizes
the script can be tried anywhere.
"""
import argparse
import contextlib
import gc
import re
import signal
import statistics
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as missing:
    raise SystemExit(f"PyTorch is not available: {missing}")

from sae_step import Eager, TopK, Weights, tokens_like_vit


def median_ms(call, device, repeats):
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


class Sae(nn.Module):
    """Dense codes and both weights as [latents, width]; k = 0: ReLU and L1, else TopK. Gives the loss."""

    def __init__(self, width, latents, k):
        super().__init__()
        rows = F.normalize(torch.randn(latents, width), dim=1)
        self.enc, self.dec = nn.Parameter(rows.clone()), nn.Parameter(rows)
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(latents)), nn.Parameter(torch.zeros(width))
        self.k = k

    def forward(self, x):
        pre = F.linear(x - self.b_dec, self.enc, self.b_enc)
        if self.k:
            value, which = pre.topk(self.k)
            z = torch.zeros_like(pre).scatter(-1, which, value.relu())
        else:
            z = pre.relu()
        y = z @ self.dec + self.b_dec
        loss = ((y - x) ** 2).mean()
        return loss if self.k else loss + 8e-5 * z.sum(-1).mean()

    def normalise(self):
        self.dec.div_(self.dec.norm(dim=1, keepdim=True))

    def project(self):
        self.dec.grad.sub_((self.dec.grad * self.dec).sum(1, keepdim=True) * self.dec)


def sae_step(a, k, compiled):
    """A step with autocast to bf16 and fused Adam; compiled: the loss with its gradient, and what is done to rows."""
    sae, x = Sae(a.width, a.latents, k), torch.randn(a.tokens, a.width)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-6, fused=True)
    wrap = torch.compile if compiled else lambda f: f
    loss, normalise, project = wrap(sae), torch.no_grad()(wrap(sae.normalise)), torch.no_grad()(wrap(sae.project))

    def step():
        normalise()
        adam.zero_grad(set_to_none=True)
        with torch.autocast(a.device, torch.bfloat16):
            value = loss(x)
        value.backward()
        project()
        adam.step()

    return step


def reference_step(a):
    """The published step: eager, fp32, dense."""
    step, x = Eager(Weights(a.width, a.latents, 0), 4e-4, 8e-5, 0), tokens_like_vit(16, a.tokens // 16, a.width, 1)
    return lambda: step(x)


def sparse_step(a, k):
    """Codes kept as entries: embedding_bag decodes them, weight gradients are products with CSR matrices."""
    step, x = TopK(Weights(a.width, a.latents, 0), 4e-4, k, a.tokens), tokens_like_vit(16, a.tokens // 16, a.width, 1)
    return lambda: step(x)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.up(self.norm2(x))
        return x + self.down(h * torch.sigmoid(1.702 * h))


class Tower(nn.Module):
    """CLIP's ViT-B/16 to hidden state -2."""

    def __init__(self, width=768, heads=12, blocks=11):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16, bias=False)
        self.first, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 197, width))
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))

    def forward(self, pixels):
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = self.norm(torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places)
        for block in self.blocks:
            x = block(x)
        return x


def tower(a, compiled):
    model = Tower().to(torch.bfloat16).eval()
    pixels = torch.randn(a.images, 3, 224, 224, dtype=torch.bfloat16)
    run = torch.compile(model, mode="max-autotune", dynamic=False) if compiled else model

    def forward():
        with torch.no_grad():
            run(pixels)

    return forward


def read_table(path):
    """{(work, precision): number in the third column} of bench_gpu's table."""
    ours = {}
    with contextlib.suppress(OSError, TypeError):
        for line in open(path):
            cells = [c.strip() for c in line.strip().strip("|").split("|")]
            if len(cells) >= 4 and re.fullmatch(r"[0-9.]+", cells[2]):
                ours[cells[0], cells[1]] = float(cells[2])
    return ours


class OutOfTime(BaseException):  # not an Exception: torch.compile catches those and goes on
    pass


def out_of_time(*_):
    raise OutOfTime("out of time")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ours", default=None)
    p.add_argument("--device", default="cuda")
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--latents", type=int, default=49152)
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--images", type=int, default=256)
    p.add_argument("--repeats", type=int, default=20)
    p.add_argument("--seconds", type=float, default=90, help="the most that one case may take, but for the last")
    p.add_argument("--all-seconds", type=float, default=600, help="the most that all may take; the last one gets what is left")
    a = p.parse_args()
    on_gpu = a.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU")
    torch.set_default_device(a.device)
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, out_of_time)
    ours = read_table(a.ours)

    def find(pattern, precision):
        return next((t for (work, p), t in ours.items() if p == precision and re.match(pattern, work)), None)

    def report(work, peer, mine, precision, goal, unit="ms"):
        faster = f"{peer / mine:.1f}" if mine else "?"
        print(f"| {work}, {unit} | {peer:.2f} | {f'{mine:.2f} ({precision})' if mine else '?'} | {faster} | {goal} |", flush=True)

    # name, precision, the step, [(row of bench_gpu, its precision, the goal)]
    relu_64, relu_128 = r"ReLU \+ L1 step, L0 (5|6|7)\d,", r"ReLU \+ L1 step, L0 1\d\d,"
    top_64, hooked = r"TopK step, L0 6\d,", r".* to the hooked layer,"
    cases = [
        ("the reference's ReLU step, eager", "fp32", lambda: reference_step(a),
         [(relu_64, "fp32", ""), (relu_64, "bf16", "at least 40, bf16 beside fp32"),
          (relu_128, "bf16", "at least 40, bf16 beside fp32")]),
        ("TopK step, K 64, sparse decode and gradients", "fp32", lambda: sparse_step(a, 64), [(top_64, "fp32", "")]),
        ("TopK step, K 64, sparse decode and gradients", "TF32", lambda: sparse_step(a, 64), [(top_64, "TF32", "")]),
        ("TopK step, K 64, dense decode and gradients, eager", "bf16", lambda: sae_step(a, 64, False), [(top_64, "bf16", "")]),
        ("ViT-B/16 to the hooked layer, eager", "bf16", lambda: tower(a, False), [(hooked, "bf16", "")]),
        ("TopK step, K 64, dense decode and gradients, torch.compile", "bf16", lambda: sae_step(a, 64, True),
         [(top_64, "bf16", "at least 4, both in bf16")]),
        ("ReLU + L1 step, torch.compile", "bf16", lambda: sae_step(a, 0, True),
         [(relu_64, "bf16", "at least 10, both in bf16"), (relu_128, "bf16", "at least 10, both in bf16"),
          (r"ReLU \+ L1 step, dense,", "bf16", "")]),
        ("ViT-B/16 to the hooked layer, torch.compile(max-autotune)", "bf16", lambda: tower(a, True),
         [(hooked, "bf16", "at least 1.3, both in bf16")]),
    ]
    print(f"PyTorch {torch.__version__}.\n\n| work | PyTorch | psae | ratio | goal |\n|---|---|---|---|---|")
    end = time.monotonic() + a.all_seconds
    for name, precision, make, beside in cases:
        name = f"{name}, {precision}"
        left = max(end - time.monotonic(), 0.01)
        try:
            signal.setitimer(signal.ITIMER_REAL, left if make is cases[-1][2] else min(left, a.seconds))
            torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
            gc.collect()  # what the case before has left in cycles
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            ms = median_ms(make(), a.device, a.repeats)
            for pattern, ours_in, goal in beside:
                report(name, ms, find(pattern, ours_in), ours_in, goal)
            if on_gpu and name.startswith("the reference"):
                for form in ("L0 64", "dense"):
                    report(f"its peak memory, psae {form}, {precision}", (torch.cuda.max_memory_allocated() - before) / 2**20,
                           find(f"peak memory of the PatchSAE step, {form}", precision), precision,
                           "at least 4, both in fp32", "MiB")
        except (OutOfTime, Exception) as error:  # PyTorch's own are of many kinds
            reason = re.sub(r"[\s|]+", " ", f"{type(error).__name__}: {error}")[:160]
            print(f"| {name} | not available: {reason} | | | |", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            torch.compiler.reset()


if __name__ == "__main__":
    main()
