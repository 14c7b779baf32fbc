"""One PatchSAE training step in PyTorch, on the CPU (or, imported by gpu.py, on torch's default device).

  --kind eager    the published step as autograd runs it: unit decoder rows, encode x - b_dec, ReLU,
                  dense decode, norm-weighted squared error, L1, ghost gradients for dead latents
                  (--dead), firing statistics, projected decoder gradient, Adam
  --kind careful  the same loss without ghost gradients and without autograd: five GEMMs with gradients
                  written by hand into kept buffers, fused Adam
  --kind topk     top-k codes (no L1), kept sparse: embedding_bag decode, CSR weight gradients, fused Adam
  --check         a small shape: the hand-written gradients against autograd's, then exit

Time of a dense step does not depend on L0; it is set by --l0 and recorded since ours does.
"""
import argparse
import sys
import warnings

import torch

from common import best_rate, gemm_times, measure, peak_mib, print_record, use_threads

warnings.filterwarnings("ignore", message="Sparse")  # CSR is called beta
DEAD_AFTER = 64  # steps without firing
WARM_UP = 500


class Weights:
    """The parameters by their names in the papers: enc [d, m], dec [m, d] with unit rows, two biases."""

    def __init__(self, width, latents, seed):
        g = torch.Generator(torch.get_default_device()).manual_seed(seed)
        bound_enc, bound_dec = (6.0 / latents) ** 0.5, (6.0 / width) ** 0.5
        self.enc = torch.empty(width, latents).uniform_(-bound_enc, bound_enc, generator=g)
        self.dec = torch.empty(latents, width).uniform_(-bound_dec, bound_dec, generator=g)
        self.dec /= self.dec.norm(dim=1, keepdim=True)
        self.b_enc = torch.zeros(latents)
        self.b_dec = torch.zeros(width)

    def all(self):
        return [self.enc, self.dec, self.b_enc, self.b_dec]

    def aim_l0(self, x, wanted):
        """Lowers b_enc so that about `wanted` latents fire per token."""
        latents = self.b_enc.numel()
        some = (x.flatten(0, -2)[:32] - self.b_dec) @ self.enc + self.b_enc
        cut = some.flatten().kthvalue(some.numel() - round(wanted / latents * some.numel())).values
        self.b_enc -= cut


class Step:
    def __init__(self, w, rate, fused):
        self.w, self.rate, self.count = w, rate, 0
        for p in w.all():
            p.requires_grad_()
        self.adam = torch.optim.Adam(w.all(), lr=rate, fused=fused)
        latents = w.b_enc.numel()
        self.idle, self.fired_total = torch.zeros(latents), torch.zeros(latents)
        self.loss, self.l0 = 0.0, 0.0

    def __call__(self, x):
        with torch.no_grad():
            self.w.dec.div_(self.w.dec.norm(dim=1, keepdim=True))
        self.gradients(x)
        self.project()
        self.count += 1
        for group in self.adam.param_groups:
            group["lr"] = self.rate * min(1.0, self.count / WARM_UP)
        self.adam.step()

    @torch.no_grad()
    def project(self):
        """Takes from the decoder's gradient the part along each row."""
        dec, grad = self.w.dec, self.w.dec.grad
        grad -= (grad * dec).sum(1, keepdim=True) * dec


class Eager(Step):
    """x is [images, tokens, width], as the published loop has it."""

    def __init__(self, w, rate, l1, dead_share):
        super().__init__(w, rate, fused=False)
        self.l1 = l1
        latents = w.b_enc.numel()
        self.kept_dead = torch.randperm(latents)[: int(dead_share * latents)]
        with torch.no_grad():
            w.b_enc[self.kept_dead] -= 3.0

    def gradients(self, x):
        w = self.w
        self.adam.zero_grad()
        self.idle[self.kept_dead] = 10.0 * DEAD_AFTER
        dead = self.idle > DEAD_AFTER
        pre = (x - w.b_dec) @ w.enc + w.b_enc
        z = torch.relu(pre)
        y = z @ w.dec + w.b_dec
        error = (y - x) ** 2 / x.square().sum(-1, keepdim=True).sqrt()
        loss = error.mean() + self.l1 * z.abs().sum(-1).mean()
        if dead.any():
            loss = loss + self.ghost(x - y, pre, error, dead)
        with torch.no_grad():  # statistics as the published loop materialises them
            active = (z > 0).float()
            self.fired_total += (z.abs() > 0).float().sum((0, 1))
            self.idle += 1
            self.idle[active.sum(1).sum(0) > 0] = 0
            del active
        loss.backward()
        self.loss = loss.item()
        self.l0 = (z.detach()[:1] > 0).sum(-1).float().mean().item()

    def ghost(self, residual, pre, error, dead):
        y = pre[..., dead].exp() @ self.w.dec[dead]
        y = y * (residual.norm(dim=-1, keepdim=True) / (1e-6 + 2 * y.norm(dim=-1, keepdim=True))).detach()
        goal = residual.detach()
        ghost_error = (y - goal) ** 2 / goal.square().sum(-1, keepdim=True).sqrt()
        return ((error / (ghost_error + 1e-6)).detach() * ghost_error).mean()


class ByHand(Step):
    """Explicit gradients in kept buffers; x is flattened to [tokens, width]."""

    def __init__(self, w, rate):
        super().__init__(w, rate, fused=True)
        for p in w.all():
            p.grad = torch.zeros_like(p)

    @torch.no_grad()
    def gradients(self, x):
        x = x.flatten(0, -2)
        centred = x - self.w.b_dec
        self.backward(x, centred, 1.0 / x.norm(dim=1, keepdim=True))

    def error(self, y, x, weight):
        """The reconstruction loss and its gradient, over the reconstruction's storage."""
        y += self.w.b_dec
        y -= x
        scale = 1.0 / x.numel()
        loss = (torch.linalg.vecdot(y, y).unsqueeze(1) * weight).sum().item() * scale
        return loss, y.mul_(weight * (2.0 * scale))

    def biases(self, grad_y, grad_pre_sum, back):
        self.w.b_enc.grad.copy_(grad_pre_sum)
        self.w.b_dec.grad.copy_(grad_y.sum(0) - back)

    def tally(self, hits):
        self.fired_total += hits
        self.idle = torch.where(hits > 0, 0.0, self.idle + 1)


class Careful(ByHand):
    def __init__(self, w, rate, l1, tokens):
        super().__init__(w, rate)
        self.l1, self.z, self.dz = l1, torch.empty(tokens, w.b_enc.numel()), torch.empty(tokens, w.b_enc.numel())

    def backward(self, x, centred, weight):
        w, z, dz, tokens = self.w, self.z, self.dz, x.shape[0]
        torch.addmm(w.b_enc, centred, w.enc, out=z).relu_()
        self.loss, g = self.error(z @ w.dec, x, weight)
        self.loss += self.l1 * z.sum().item() / tokens
        torch.mm(z.t(), g, out=w.dec.grad)
        torch.mm(g, w.dec.t(), out=dz)
        dz += self.l1 / tokens
        torch.ops.aten.threshold_backward.grad_input(dz, z, 0.0, grad_input=dz)
        torch.mm(centred.t(), dz, out=w.enc.grad)
        total = dz.sum(0)
        self.biases(g, total, w.enc @ total)
        hits = torch.count_nonzero(z, dim=0)
        self.tally(hits)
        self.l0 = hits.sum().item() / tokens


class TopK(ByHand):
    """The encoder lies as [m, d], so that a latent's row of each weight is contiguous."""

    CHUNK = 128  # tokens whose decoder rows are gathered at a time

    def __init__(self, w, rate, k, tokens):
        w.enc = w.enc.t().contiguous()
        super().__init__(w, rate)
        self.k, self.pre = k, torch.empty(tokens, w.b_enc.numel())

    def backward(self, x, centred, weight):
        w, k, tokens, latents = self.w, self.k, x.shape[0], self.w.b_enc.numel()
        torch.addmm(w.b_enc, centred, w.enc.t(), out=self.pre)
        value, which = self.pre.topk(k, sorted=False)
        value.relu_()
        y = torch.nn.functional.embedding_bag(which, w.dec, per_sample_weights=value, mode="sum")
        self.loss, g = self.error(y, x, weight)
        dvalue = torch.cat([(w.dec[i] @ e.unsqueeze(-1)).squeeze(-1) for i, e in
                            zip(which.split(self.CHUNK), g.split(self.CHUNK))])
        dvalue *= value > 0
        flat = which.flatten()
        by_latent = flat.argsort(stable=True)
        hits = torch.bincount(flat, minlength=latents)
        start = torch.nn.functional.pad(hits.cumsum(0), (1, 0))
        token = by_latent.div(k, rounding_mode="floor")

        def sparse(entries):
            return torch.sparse_csr_tensor(start, token, entries.flatten()[by_latent], (latents, tokens))

        torch.mm(sparse(value), g, out=w.dec.grad)
        torch.mm(sparse(dvalue), centred, out=w.enc.grad)
        total = torch.zeros(latents).scatter_add_(0, flat, dvalue.flatten())
        self.biases(g, total, total @ w.enc)
        self.tally(hits)
        self.l0 = torch.count_nonzero(value).item() / tokens


def tokens_like_vit(images, per_image, width, seed):
    """Gaussian tokens whose directions fall off in scale, about a mean that all share."""
    g = torch.Generator(torch.get_default_device()).manual_seed(seed)
    scale = torch.linspace(1, width, width).rsqrt()
    scale *= (width / scale.square().sum()).sqrt()
    return torch.randn(images, per_image, width, generator=g) * scale + 0.1 * torch.randn(width, generator=g)


def check():
    """Largest relative difference of the gradients, over three steps from the same start."""
    width, latents, k, worst = 48, 320, 8, 0.0
    x = tokens_like_vit(4, 32, width, 5)

    def differ(a, b):
        return ((a - b).abs().max() / b.abs().max()).item()

    eager, careful = Eager(Weights(width, latents, 3), 1e-3, 1e-3, 0), Careful(Weights(width, latents, 3), 1e-3, 1e-3, 128)
    for _ in range(3):
        eager(x), careful(x)
        worst = max([worst] + [differ(p.grad, q.grad) for p, q in zip(careful.w.all(), eager.w.all())])
    topk, w = TopK(Weights(width, latents, 3), 1e-3, k, 128), Weights(width, latents, 3)
    auto = Step(w, 1e-3, fused=False)

    def autograd(x):
        auto.adam.zero_grad()
        best = ((x - w.b_dec) @ w.enc + w.b_enc).topk(k)
        z = torch.zeros(*x.shape[:-1], latents).scatter(-1, best.indices, best.values.relu())
        ((z @ w.dec + w.b_dec - x) ** 2 / x.norm(dim=-1, keepdim=True)).mean().backward()

    auto.gradients = autograd
    for _ in range(3):
        topk(x), auto(x)
        mine = [topk.w.enc.grad.t(), topk.w.dec.grad, topk.w.b_enc.grad, topk.w.b_dec.grad]
        worst = max([worst] + [differ(p, q.grad) for p, q in zip(mine, w.all())])
    print(f"largest relative gradient difference {worst:.1e}")
    return worst < 1e-4


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kind", choices=["eager", "careful", "topk"], default="eager")
    p.add_argument("--l0", type=float, default=0, help="latents that fire per token, about (0: the initial weights' half)")
    p.add_argument("--k", type=int, default=64)
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--images", type=int, default=16, help="the tokens are [images, tokens / images, width]")
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--latents", type=int, default=49152)
    p.add_argument("--dead", type=float, default=0, help="eager: share of latents kept dead, for ghost gradients")
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    threads = use_threads(a.threads)
    if a.check:
        sys.exit(0 if check() else 1)
    if a.tokens % a.images:
        p.error("--tokens must be a multiple of --images")
    torch.manual_seed(0)
    l1, rate = 8e-5, 4e-4
    w = Weights(a.width, a.latents, 0)
    x = tokens_like_vit(a.images, a.tokens // a.images, a.width, 1)
    if a.l0 and a.kind != "topk":
        w.aim_l0(x, a.l0)
    step = {"eager": lambda: Eager(w, rate, l1, a.dead), "careful": lambda: Careful(w, rate, l1, a.tokens),
            "topk": lambda: TopK(w, rate, a.k, a.tokens)}[a.kind]()
    t = measure(lambda: step(x), a.repeats)
    row = {"case": f"sae_step/{a.kind}", "l0": round(step.l0, 1), "l0_asked": a.l0, "loss": step.loss,
           "tokens_per_s": a.tokens / t["median_s"], "peak_rss_mib": peak_mib(), **t}
    del step, w, x
    n, d, m = a.tokens, a.width, a.latents
    ceiling = gemm_times({"encode": (n, d, m, ""), "decode": (n, m, d, ""), "grad_dec": (m, n, d, "a"),
                          "grad_z": (n, d, m, "b"), "grad_enc": (d, n, m, "a")}, 2)
    row["five_gemms_s"] = sum(entry["median_s"] for entry in ceiling.values())
    row["of_five_gemms"] = row["median_s"] / row["five_gemms_s"]
    print_record("sae_step", [row], ceiling, best_gflops=best_rate(ceiling), torch=torch.__version__, threads=threads,
                 tokens=n, width=d, latents=m)


if __name__ == "__main__":
    main()
