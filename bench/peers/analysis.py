"""The pass over pictures after training as PatchSAE's scripts make it, in PyTorch on the CPU.

Given tokens [images, 197, 768] at the hooked layer, for every batch: the SAE's whole forward (dense codes and the
decoded tokens, which the scripts do not use), the frequencies and sums of each latent, its ten images with the largest
mean activation; then, image by image, the tokens on which each latent is above tau, added to the image's class.
Seconds are per batch; ours, without the tower, is bench_analysis.
"""
import argparse

import torch

from common import best_rate, gemm_times, measure, peak_mib, print_record, use_threads

TOKENS, WIDTH, TAU = 197, 768, 0.2


class Analysis:
    def __init__(self, latents, classes, top):
        torch.manual_seed(3)
        self.enc = torch.randn(WIDTH, latents) / WIDTH**0.5
        self.dec = torch.randn(latents, WIDTH) / WIDTH**0.5
        self.b_enc, self.b_dec = torch.full((latents,), -3.0), torch.zeros(WIDTH)
        self.frequency, self.total = torch.zeros(latents), torch.zeros(latents)
        self.best = torch.full((latents, top), -1.0)
        self.best_image = torch.full((latents, top), -1, dtype=torch.long)
        self.of_class = torch.zeros(classes, latents, dtype=torch.float64)
        self.images, self.top, self.classes = 0, top, classes

    def codes(self, x):
        z = torch.relu((x - self.b_dec) @ self.enc + self.b_enc)
        return z, z @ self.dec + self.b_dec

    def count(self, z):
        score = z.mean(1)  # [images, latents]
        self.frequency += (score > 0).sum(0)
        self.total += score.sum(0)
        numbers = torch.arange(self.images, self.images + len(z)).expand(score.shape[1], -1)
        self.best, places = torch.cat([self.best, score.T], 1).topk(self.top, 1)
        self.best_image = torch.cat([self.best_image, numbers], 1).gather(1, places)
        for image in z:
            label = int(torch.randint(self.classes, ()))
            self.of_class[label] += (image > TAU).sum(0)
        self.images += len(z)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--latents", type=int, default=49152)
    p.add_argument("--classes", type=int, default=1000)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--threads", type=int, default=0)
    a = p.parse_args()
    threads = use_threads(a.threads)
    ceiling = gemm_times({"encoder": (a.batch * TOKENS, WIDTH, a.latents, "")})
    work = Analysis(a.latents, a.classes, 10)
    rows = []
    with torch.no_grad():
        x = torch.randn(a.batch, TOKENS, WIDTH)
        z, _ = work.codes(x)
        l0 = float((z > 0).float().sum(-1).mean())
        for name, call in (("forward", lambda: work.codes(x)), ("count", lambda: work.count(z))):
            t = measure(call, a.repeats)
            rows.append({"case": f"analysis/{name}", "l0": l0, "peak_rss_mib": peak_mib(),
                         "ms_per_image": 1e3 * t["median_s"] / a.batch, **t})
    print_record("analysis", rows, ceiling, best_gflops=best_rate(ceiling), torch=torch.__version__, threads=threads)


if __name__ == "__main__":
    main()
