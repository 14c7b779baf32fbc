#!/usr/bin/env python3
"""Train MaPLe's prompts for a CLIP model in the Hugging Face layout, and write them as MaPLe's code does.

MaPLe (Khattak et al., MaPLe: multi-modal prompt learning, 2023): a context of a few tokens for the texts, replaced before
each of the first blocks, and the same for the pictures by linear layers from it. All other weights stay as they are. The
file (model.pth.tar-EPOCHS) holds the prompts alone; `patchsae --adapter` reads it.

    train_maple.py --patchsae build/patchsae --model data/tiny-clip --images classes.csv --split train --out adapter

Pictures and texts go through `patchsae preprocess` and `patchsae tokenize`, so that they are what the program sees.
--images is a table path,label[,split]; a label is a class's name. Needs numpy, safetensors and torch; the CPU will do.
"""
import argparse
import csv
import json
import math
import os
import subprocess
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class Tower:
    """The blocks of one of CLIP's towers, frozen."""

    def __init__(self, weights, prefix, config):
        self.w = {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix)}
        self.layers, self.heads, self.width = (config[k] for k in ("num_hidden_layers", "num_attention_heads", "hidden_size"))

    def norm(self, x, name):
        return F.layer_norm(x, (self.width,), self.w[name + ".weight"], self.w[name + ".bias"])

    def linear(self, x, name):
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def run(self, x, prompts, at, causal):
        """x: [n, tokens, width]; prompts[i - 1] takes rows at .. of every sequence before block i."""
        count = prompts[0].shape[0] if prompts else 0
        for i in range(self.layers):
            if 1 <= i <= len(prompts):
                rows = prompts[i - 1].expand(len(x), -1, -1)
                x = torch.cat([x[:, :at], rows, x[:, at + count:]], 1)
            b = f"encoder.layers.{i}."
            h = self.norm(x, b + "layer_norm1")
            q, k, v = (self.linear(h, b + f"self_attn.{p}_proj").unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in "qkv")
            h = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            x = x + self.linear(h, b + "self_attn.out_proj")
            h = self.linear(self.norm(x, b + "layer_norm2"), b + "mlp.fc1")
            x = x + self.linear(h * torch.sigmoid(1.702 * h), b + "mlp.fc2")
        return x


class Prompts(nn.Module):
    """The state dict has MaPLe's names."""

    def __init__(self, start, vision_width, depth):
        super().__init__()
        count, width = start.shape
        self.ctx = nn.Parameter(start.clone())
        self.proj = nn.Linear(width, vision_width)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(count, width)) for _ in range(depth - 1))
        self.compound_prompt_projections = nn.ModuleList(nn.Linear(width, vision_width) for _ in range(depth - 1))


class Clip:
    def __init__(self, folder):
        config = json.load(open(f"{folder}/config.json"))
        self.w = {k: v.float() for k, v in load_file(f"{folder}/model.safetensors").items() if v.is_floating_point()}
        self.vision = Tower(self.w, "vision_model.", config["vision_config"])
        self.text = Tower(self.w, "text_model.", config["text_config"])
        self.scale = self.w["logit_scale"].exp()

    def images(self, pixels, p):
        w = self.vision.w
        x = F.conv2d(pixels, w["embeddings.patch_embedding.weight"], stride=w["embeddings.patch_embedding.weight"].shape[-1])
        x = torch.cat([w["embeddings.class_embedding"].expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + w["embeddings.position_embedding.weight"]
        x = self.vision.norm(torch.cat([x, p.proj(p.ctx).expand(len(x), -1, -1)], 1), "pre_layrnorm")
        deep = [layer(rows) for layer, rows in zip(p.compound_prompt_projections, p.compound_prompts_text)]
        x = self.vision.run(x, deep, x.shape[1] - len(p.ctx), False)
        return F.normalize(F.linear(self.vision.norm(x[:, 0], "post_layernorm"), self.w["visual_projection.weight"]), dim=-1)

    def texts(self, ids, p):
        w, count = self.text.w, len(p.ctx)
        x = w["embeddings.token_embedding.weight"][ids]
        x = torch.cat([x[:, :1], p.ctx.expand(len(x), -1, -1), x[:, 1 + count:]], 1)
        x = self.text.run(x + w["embeddings.position_embedding.weight"][:x.shape[1]], list(p.compound_prompts_text), 1, True)
        x = self.text.norm(x[torch.arange(len(x)), ids.argmax(1)], "final_layer_norm")
        return F.normalize(F.linear(x, self.w["text_projection.weight"]), dim=-1)


def read_inputs(a):
    """-> names of the classes, ids [classes, context] of their prompts, pixels [n, 3, side, side], labels [n]"""
    rows = {os.path.abspath(os.path.join(os.path.dirname(a.images), r["path"])): r["label"]
            for r in csv.DictReader(open(a.images))}
    names = sorted(set(rows.values()))
    with tempfile.TemporaryDirectory() as work:
        with open(f"{work}/texts.txt", "w") as f:
            f.writelines(f"{a.context} {name.replace('_', ' ')}.\n" for name in names)
        run = lambda *words: subprocess.run([a.patchsae, *words, "--model", a.model], check=True, stdout=subprocess.DEVNULL)
        run("tokenize", "--text", f"{work}/texts.txt", "--out", f"{work}/ids.npz")
        run("preprocess", "--images", a.images, *(["--split", a.split] if a.split else []), "--out", f"{work}/pixels.npz")
        ids = np.load(f"{work}/ids.npz")["ids"].astype(np.int64)
        pictures = np.load(f"{work}/pixels.npz")
        labels = [names.index(rows[os.path.abspath(f)]) for f in pictures["files"]]
        return names, torch.from_numpy(ids), torch.from_numpy(pictures["pixels"]), torch.tensor(labels)


def augmented(x):
    """Mirrored or not, and a random part of 0.6 to 1 of the area."""
    out = torch.empty_like(x)
    side = x.shape[-1]
    for i, picture in enumerate(x):
        s = round(side * math.sqrt(float(torch.empty(1).uniform_(0.6, 1))))
        top, left = (int(torch.randint(side - s + 1, (1,))) for _ in range(2))
        part = F.interpolate(picture[None, :, top:top + s, left:left + s], (side, side), mode="bicubic", antialias=True)[0]
        out[i] = part.flip(-1) if torch.rand(1) < 0.5 else part
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--patchsae", required=True, help="the built program")
    p.add_argument("--model", required=True, help="Hugging Face CLIP directory with model.safetensors")
    p.add_argument("--images", required=True, help="table path,label[,split]")
    p.add_argument("--split", default="", help="use only this split")
    p.add_argument("--context", default="a photo of a", help="words before the class's name; the first ones are learnt")
    p.add_argument("--n-ctx", type=int, default=2, help="tokens of context")
    p.add_argument("--depth", type=int, default=3, help="blocks that get prompts, the first included")
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--lr", type=float, default=0.0035)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", required=True, help="folder for model.pth.tar-EPOCHS")
    a = p.parse_args()

    torch.manual_seed(a.seed)
    names, ids, pixels, labels = read_inputs(a)
    clip = Clip(a.model)
    if not 1 <= a.depth <= min(clip.vision.layers, clip.text.layers):
        p.error(f"--depth: expected 1 to {min(clip.vision.layers, clip.text.layers)}, the blocks of the smaller tower")
    start = clip.text.w["embeddings.token_embedding.weight"][ids[0, 1:1 + a.n_ctx]]
    prompts = Prompts(start, clip.vision.width, a.depth)
    optimizer = torch.optim.SGD(prompts.parameters(), a.lr, momentum=0.9, weight_decay=5e-4)
    steps, done = a.epochs * math.ceil(len(pixels) / a.batch), 0
    for epoch in range(a.epochs):
        total = right = 0
        for which in torch.randperm(len(pixels)).split(a.batch):
            optimizer.param_groups[0]["lr"] = a.lr * (1 + math.cos(math.pi * done / steps)) / 2
            logits = clip.scale * clip.images(augmented(pixels[which]), prompts) @ clip.texts(ids, prompts).T
            loss = F.cross_entropy(logits, labels[which])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(which)
            right += int((logits.argmax(1) == labels[which]).sum())
            done += 1
        print(f"epoch {epoch + 1}: loss {total / len(pixels):.4f}, accuracy {right / len(pixels):.4f} (augmented)", flush=True)
    os.makedirs(a.out, exist_ok=True)
    state = {"prompt_learner." + k: v.detach().contiguous() for k, v in prompts.state_dict().items()}
    torch.save({"state_dict": state, "epoch": a.epochs}, f"{a.out}/model.pth.tar-{a.epochs}")


if __name__ == "__main__":
    main()
