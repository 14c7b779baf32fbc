"""CLIP preprocessing with Pillow on one core: images per second on a folder of JPEGs and PNGs.

Decode, RGB, bicubic resize of the shorter side to 224, central crop, scale, normalise, planes first:
what Hugging Face's CLIPImageProcessor does, without its overhead. --make writes the pictures and exits.
"""
import argparse
import pathlib

import numpy as np
from PIL import Image

from common import best_rate, gemm_times, measure, print_record, use_threads

SIDE = 224
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SIZES = [(640, 480), (480, 640), (1024, 768), (500, 375), (1600, 1200), (800, 800)]


def make(folder, count=24):
    """Cloud-like pictures of photographic sizes: noise at several scales, quality 90, 4:2:0; one of each size as PNG too."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(11)
    for i in range(count):
        size = SIZES[i % len(SIZES)]
        picture = np.zeros((size[1], size[0], 3), np.float32)
        for cells, strength in ((4, 90), (24, 50), (120, 25)):
            noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += strength * (np.asarray(noise.resize(size, Image.Resampling.BICUBIC), np.float32) / 127.5 - 1)
        picture = Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8))
        if i < len(SIZES):
            picture.save(folder / f"{i:03}.png")
        picture.save(folder / f"{i:03}.jpg", quality=90, subsampling=2)


def decode(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def resize(image):
    short = min(image.size)
    size = tuple(SIDE if s == short else int(SIDE * s / short) for s in image.size)
    return image.resize(size, Image.Resampling.BICUBIC)


def tensor(image):
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    pixels = (pixels * np.float32(1 / 255) - MEAN) / STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--make", action="store_true")
    p.add_argument("--repeats", type=int, default=5)
    a = p.parse_args()
    if a.make:
        return make(a.folder)
    use_threads(1)
    jpegs, pngs = (sorted(a.folder.glob(pattern)) for pattern in ("*.jpg", "*.png"))
    if not jpegs or not pngs:
        p.error(f"no JPEG or no PNG in {a.folder}; --make writes some")
    images = [decode(f) for f in jpegs]
    work = {"jpeg": (jpegs, lambda f: tensor(resize(decode(f)))), "png": (pngs, lambda f: tensor(resize(decode(f)))),
            "resize": (images, lambda i: tensor(resize(i)))}
    rows = []
    for name, (items, call) in work.items():
        t = measure(lambda: [call(i) for i in items], a.repeats)
        per_image = {"median_s": t["median_s"] / len(items), "min_s": t["min_s"] / len(items),
                     "all_s": [s / len(items) for s in t["all_s"]], "cores_busy": t["cores_busy"]}
        rows.append({"case": f"preprocess/{name}", "images": len(items), "images_per_s": 1 / per_image["median_s"], **per_image})
    ceiling = gemm_times({"square": (1024, 1024, 1024, "")}, 5)
    print_record("preprocess", rows, ceiling, best_gflops=best_rate(ceiling), threads=1,
                 pillow=__import__("PIL").__version__)


if __name__ == "__main__":
    main()
