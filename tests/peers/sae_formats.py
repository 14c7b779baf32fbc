"""SAE files that patchsae writes, read by the tools they are for: SAELens itself, safetensors and torch.

usage: sae_formats.py PATCHSAE GOLDEN

Codes and reconstructions must equal those expected in GOLDEN/formats. Where a tool cannot be installed beside the others,
its formula stands here.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file

program, formats = sys.argv[1], pathlib.Path(sys.argv[2]) / "formats"
work = pathlib.Path(tempfile.mkdtemp(prefix="psae_peers_"))
checked = 0


def convert(source, to, *options):
    out = work / f"{source.replace('/', '_')}-{to}{'.pt' if to in ('patchsae', 'saev') else ''}"
    subprocess.run([program, "convert", "--from", formats / source, "--to", to, "--out", out, *options],
                   check=True, stdout=subprocess.DEVNULL)
    return out


def compare(source, expected, names, z, x_hat):
    global checked
    values = np.load(formats / f"{expected}.expected.npz")
    for name, got in zip(names, (z, x_hat)):
        want = values[name]
        error = np.abs(got.detach().numpy() - want).max() / np.abs(want).max()
        assert error < 1e-5, f"{source}: {name} differs by {error}"
    checked += 1


def inputs(expected):
    return torch.from_numpy(np.load(formats / f"{expected}.expected.npz")["x"])


def saelens():
    from sae_lens import SAE
    from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig

    pairs = [(f"saelens/{name}", "saelens", name) for name in
             ("standard", "standard_no_centre", "standard_layer_norm", "standard_constant_norm", "topk",
              "topk_rescaled", "jumprelu", "gated")]
    pairs += [("patchsae.pt", "patchsae", None), ("saev_schema1_relu.pt", "saev", "relu"),
              ("sparsify", "sparsify", None)]
    pairs += [(f"dictionary_learning/{name}", "dictionary_learning", name) for name in
              ("standard", "topk", "batch_topk", "jumprelu", "gated")]
    for source, expected, name in pairs:
        sae = SAE.load_from_disk(str(convert(source, "saelens")))
        x = inputs(expected)
        z = sae.encode(x)
        prefix = f"{name}_" if name else ""
        compare(source, expected, (prefix + "z", prefix + "x_hat"), z, sae.decode(z))
    assert SAE.load_from_disk(str(work / "patchsae.pt-saelens")).cfg.metadata.model_name == \
        "openai/clip-vit-base-patch32"

    directory = convert("saelens/skip_transcoder", "saelens")
    transcoder = SkipTranscoder(SkipTranscoderConfig.from_dict(json.loads((directory / "cfg.json").read_text())))
    transcoder.load_state_dict(load_file(directory / "sae_weights.safetensors"))
    x = inputs("saelens")
    compare("saelens/skip_transcoder", "saelens", ("skip_transcoder_z", "skip_transcoder_x_hat"),
            transcoder.encode(x), transcoder(x))


def top(h, k):
    values, places = h.topk(k, dim=-1)
    return torch.zeros_like(h).scatter(-1, places, values)


def saev():
    for source, name in (("saev_schema1_relu.pt", "relu"), ("saev_schema2.pt", "topk")):
        with open(convert(source, "saev"), "rb") as file:
            header = json.loads(file.readline())
            w = torch.load(file, weights_only=True)
        assert header["schema"] == 5 and set(header["cfg"]) == {"d_model", "d_sae", "activation"}
        activation = header["cfg"]["activation"]
        h = inputs("saev") @ w["W_enc"] + w["b_enc"]
        z = top(h, activation["params"]["top_k"]) if activation["cls"] == "TopK" else h.relu()
        compare(source, "saev", (f"{name}_z", f"{name}_x_hat"), z, z @ w["W_dec"] + w["b_dec"])


def patchsae():
    for source in ("patchsae.pt", "dictionary_learning/standard"):
        checkpoint = torch.load(convert(source, "patchsae"), weights_only=True)
        w, config = checkpoint["state_dict"], checkpoint["config"]
        assert config["dtype"] is torch.float32 and (config["d_in"], config["d_sae"]) == tuple(w["W_enc"].shape)
        expected, prefix = ("patchsae", "") if source == "patchsae.pt" else ("dictionary_learning", "standard_")
        z = ((inputs(expected) - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        compare(source, expected, (prefix + "z", prefix + "x_hat"), z, z @ w["W_dec"] + w["b_dec"])


def sparsify():
    for source, names in (("sparsify", ("z", "x_hat")), ("sparsify_transcoder", ("transcoder_z", "transcoder_y"))):
        directory = convert(source, "sparsify")
        config = json.loads((directory / "cfg.json").read_text())
        w = load_file(directory / "sae.safetensors")
        x = inputs("sparsify")
        h = (x if config["transcode"] else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
        z = top(h.relu(), config["k"])
        y = z @ w["W_dec"] + w["b_dec"]
        compare(source, "sparsify", names, z, y + x @ w["W_skip"].T if config["skip_connection"] else y)


def dictionary_learning():
    for name in ("standard", "topk", "batch_topk", "jumprelu", "gated"):
        directory = convert(f"dictionary_learning/{name}", "dictionary_learning")
        w = torch.load(directory / "ae.pt", weights_only=True)
        original = torch.load(formats / "dictionary_learning" / name / "ae.pt", weights_only=True)
        assert set(w) == set(original), name
        for key in set(w) - {"threshold"} if name == "topk" else w:
            assert w[key].dtype == original[key].dtype and torch.equal(w[key], original[key]), (name, key)
        trainer = json.loads((directory / "config.json").read_text())["trainer"]
        before = json.loads((formats / "dictionary_learning" / name / "config.json").read_text())["trainer"]
        for key in ("dict_class", "activation_dim", "dict_size", "k", "lm_name", "layer", "submodule_name"):
            assert trainer.get(key) == before.get(key), (name, key)
        global checked
        checked += 1


saelens()
saev()
patchsae()
sparsify()
dictionary_learning()
print(f"{checked} passed, 0 failed")
