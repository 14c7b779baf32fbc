"""One training step of SAELens' own trainer (its TopK SAE, Adam), fp32 on the CPU, without its logging.

Needs sae-lens==6.18.0 beside requirements.txt.
"""
import argparse

import sae_lens
import torch
from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from common import best_rate, gemm_times, measure, peak_mib, print_record, use_threads
from sae_step import tokens_like_vit


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--k", type=int, default=64)
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--images", type=int, default=16)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--latents", type=int, default=49152)
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--threads", type=int, default=0)
    a = p.parse_args()
    threads = use_threads(a.threads)
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=a.width, d_sae=a.latents, k=a.k))
    trainer = SAETrainer(
        SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=1000 * a.tokens,
            device="cpu", autocast=False, lr=4e-4, lr_end=4e-5, lr_scheduler_name="constant", lr_warm_up_steps=500,
            adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=a.tokens,
            dead_feature_window=1000, feature_sampling_window=2000, logger=LoggingConfig(log_to_wandb=False)),
        sae, data_provider=iter(()))
    x = tokens_like_vit(a.images, a.tokens // a.images, a.width, 1).flatten(0, 1)
    t = measure(lambda: trainer._train_step(sae=sae, sae_in=x), a.repeats)
    row = {"case": "sae_step/saelens", "l0": a.k, "l0_asked": a.k, "tokens_per_s": a.tokens / t["median_s"],
           "peak_rss_mib": peak_mib(), **t}
    del trainer, sae
    ceiling = gemm_times({"encode": (a.tokens, a.width, a.latents, "")}, 2)
    print_record("sae_step", [row], ceiling, best_gflops=best_rate(ceiling), torch=torch.__version__,
                 saelens=sae_lens.__version__, threads=threads)


if __name__ == "__main__":
    main()
