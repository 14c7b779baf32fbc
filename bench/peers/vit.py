"""CLIP's ViT-B/16 image tower (random weights, fp32) in PyTorch, ONNX Runtime and OpenVINO on the CPU.

full: 12 blocks and the pooled output. tap: the hidden state -2, that is 11 blocks and nothing after.
Every engine's hidden state is compared with eager PyTorch's before it is timed.
"""
import argparse
import pathlib

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from common import best_rate, gemm_times, measure, print_record, progress, use_threads

BLOCKS = {"full": 12, "tap": 11}
SIDE, PATCH, WIDTH, HIDDEN, HEADS = 224, 16, 768, 3072, 12
PATCHES = (SIDE // PATCH) ** 2
TOKENS = PATCHES + 1


def gflop(part):
    projections, mlp, attention = 4 * TOKENS * WIDTH**2, 2 * TOKENS * WIDTH * HIDDEN, 2 * TOKENS**2 * WIDTH
    return 2e-9 * (BLOCKS[part] * (projections + mlp + attention) + PATCHES * 3 * PATCH**2 * WIDTH)


class Tower(torch.nn.Module):
    def __init__(self, part):
        super().__init__()
        torch.manual_seed(7)
        self.clip = CLIPVisionModel(CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=BLOCKS[part], num_attention_heads=HEADS,
            image_size=SIDE, patch_size=PATCH, hidden_act="quick_gelu", attn_implementation="sdpa"))
        self.pooled = part == "full"
        self.eval()

    def forward(self, pixels):
        out = self.clip(pixel_values=pixels)
        return (out.last_hidden_state, out.pooler_output) if self.pooled else (out.last_hidden_state,)


# Each engine: (tower, ONNX path maker, batch, threads) -> function from pixels (numpy) to the hidden state (numpy).


def eager(tower, _, batch, threads):
    def run(pixels):
        with torch.inference_mode():
            return tower(torch.from_numpy(pixels))[0].numpy()

    return run


def compiled(tower, _, batch, threads):
    torch.compiler.reset()
    fast = torch.compile(tower, dynamic=False)

    def run(pixels):
        with torch.no_grad():
            return fast(torch.from_numpy(pixels))[0].numpy()

    return run


def onnxruntime(tower, model, batch, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def openvino(tower, model, batch, threads):
    import openvino as ov

    core = ov.Core()
    graph = core.read_model(model())
    graph.reshape([batch, 3, SIDE, SIDE])
    request = core.compile_model(graph, "CPU", {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
    }).create_infer_request()
    return lambda pixels: request.infer([pixels], share_inputs=True, share_outputs=True)[0]


ENGINES = {"eager": eager, "compile": compiled, "onnxruntime": onnxruntime, "openvino": openvino}


def exported(tower, part, folder):
    path = pathlib.Path(folder) / f"{part}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        progress(f"exporting {path}")
        torch.onnx.export(tower, (torch.zeros(2, 3, SIDE, SIDE),), str(path), dynamo=True, verbose=False,
                          input_names=["pixels"], dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=128)},))
    return str(path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    p.add_argument("--parts", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    p.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    p.add_argument("--repeats", type=int, default=0, help="timed runs per figure (0: 7 at batch 1, 3 above)")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--models", default="build/peers-models", help="folder of the exported towers (700 MB)")
    a = p.parse_args()
    threads = use_threads(a.threads)
    shapes = {}
    for b in a.batches:
        n = b * TOKENS
        shapes.update({f"attention_b{b}": (n, WIDTH, WIDTH, "b"), f"mlp_up_b{b}": (n, WIDTH, HIDDEN, "b"),
                       f"mlp_down_b{b}": (n, HIDDEN, WIDTH, "b")})
    ceiling = gemm_times(shapes, 5)
    rows = []
    for part in a.parts:
        tower = Tower(part)
        for batch in a.batches:
            pixels = np.random.default_rng(batch).standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32)
            expected = eager(tower, None, batch, threads)(pixels)
            for name in a.engines:
                row = {"case": f"vit/{part}/b{batch}/{name}"}
                try:  # an engine that is missing or has no C++ compiler must not cost the others their figures
                    run = ENGINES[name](tower, lambda: exported(tower, part, a.models), batch, threads)
                    row["difference"] = float(np.abs(run(pixels) - expected).max())
                    t = measure(lambda: run(pixels), a.repeats or (7 if batch == 1 else 3))
                    row.update(t, ms_per_image=1e3 * t["median_s"] / batch,
                               gflops=gflop(part) * batch / t["median_s"],
                               of_ceiling=gflop(part) * batch / t["median_s"] / best_rate(ceiling))
                    progress(f"{row['case']}: {row['ms_per_image']:.1f} ms/image, {row['of_ceiling']:.2f} of the ceiling, "
                             f"difference {row['difference']:.1e}")
                    del run
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
                    progress(f"{row['case']}: {row['error']}")
                rows.append(row)
    print_record("vit", rows, ceiling, best_gflops=best_rate(ceiling), torch=torch.__version__, threads=threads)


if __name__ == "__main__":
    main()
