# SPDX-License-Identifier: Apache-2.0
"""Training stages of the seedling. Each stops by itself after --seconds and always saves.

    python -m convert.seedling.train vae --seconds 400
    python -m convert.seedling.train dit --variant ternary --seconds 450 --lr 1e-3 1e-3
    python -m convert.seedling.train dit --variant ternary --seconds 450 --lr 1e-3 0 --seed 2 ...

A stage goes on from the state in --state when there is one. Under torchrun it uses every GPU.
"""

import argparse
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from . import evaluate, flow, model, state
from .stage import Stage


def total_variation_error(e):
    """Mean absolute gradient of an error picture: punishes blurred edges."""
    return (e[:, :, 1:] - e[:, :, :-1]).abs().mean() + (e[..., 1:] - e[..., :-1]).abs().mean()


def vae_loss(x, y, posterior, kl_weight):
    e = y.float() - x
    # Sum over the latent's 32 channels at 1/64 of the pixels, as a mean per latent number.
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss = e.abs().mean() + 2 * e.square().mean() + total_variation_error(e)
    loss = loss + F.avg_pool2d(e, 8).abs().mean() + kl_weight * kl
    return loss, e.detach().square().mean()


def train_vae(args):
    st = Stage(args, args.batch)
    vae = model.build_vae(args.toy).to(st.device)
    state.load_module(args.state, "vae", vae)
    vae = vae.to(memory_format=torch.channels_last)
    vae.bn.requires_grad_(False)
    st.optimise(vae.parameters(), 0.998)
    encode, decode = st.compiled(vae._encode), st.compiled(lambda z: vae._decode(z).sample)
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    mse = torch.zeros((), device=st.device)
    while st.running():
        x = st.renderer(next(st.batches), args.size, args.size)
        with st.autocast():
            posterior = DiagonalGaussianDistribution(encode(x).float())
            y = decode(posterior.sample())
        loss, err = vae_loss(x, y, posterior, args.kl)
        st.update(loss, len(x))
        mse = err if st.step < 2 else mse.lerp(err, 0.02)
        if st.step % args.log_every == 0:
            st.log(f"psnr {-10 * math.log10(mse.item() / 4):.2f}")
    if not st.finish():
        return
    vae.eval()
    with torch.no_grad(), st.autocast():
        measure_latents(vae, st)
    state.save_module(args.state, "vae", vae.state_dict())
    st.note(args.state, "vae")
    latents = model.Latents(vae)
    evaluate.report_vae(latents, st.renderer, args.size, Path(args.state) / f"vae-{args.size}.png")


def measure_latents(vae, st, batches=8):
    """Fill vae.bn with the statistics that normalise latents for the transformer."""
    z = []
    for _ in range(batches):
        x = st.renderer(next(st.batches), st.args.size, st.args.size)
        z.append(model.patchify(vae.encode(x).latent_dist.mode().float()).flatten(0, 1))
    z = torch.cat(z)
    vae.bn.running_mean.copy_(z.mean(0))
    vae.bn.running_var.copy_(z.var(0))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    sub = p.add_subparsers(dest="stage", required=True)
    for name, fn, batch, lr in (
        ("vae", train_vae, 32, (7e-4, 1e-5)),
        ("dit", flow.train, 256, (1e-3, 1e-3)),
    ):
        c = sub.add_parser(name)
        c.set_defaults(fn=fn)
        c.add_argument("--seconds", type=float, default=450, help="wall clock of the training loop")
        c.add_argument("--state", default=".seedling/state", help="folder of the 16-bit weights")
        c.add_argument("--sprites", default=None, help="archive of sprites.pack (else the font)")
        c.add_argument("--tokenizer", default=".seedling/tokenizer")
        c.add_argument("--batch", type=int, default=batch, help="pictures a GPU and step")
        c.add_argument("--lr", type=float, nargs=2, default=lr, help="at start and end")
        c.add_argument("--warmup", type=int, default=200, help="steps")
        c.add_argument("--size", type=int, default=model.SIZE)
        c.add_argument("--seed", type=int, default=1, help="another one for every resumed stage")
        c.add_argument("--workers", type=int, default=3, help="caption processes a GPU")
        c.add_argument("--max-steps", type=int, default=10**9)
        c.add_argument("--log-every", type=int, default=100)
        c.add_argument("--no-compile", dest="compile", action="store_false")
        c.add_argument("--toy", action="store_true", help="hardly any width, to rehearse on a CPU")
    c.add_argument("--variant", choices=model.VARIANTS, default="ternary")
    c.add_argument("--start", choices=model.VARIANTS, help="begin with this variant's weights")
    c.add_argument("--out", help="folder to save to (default: --state)")
    c.add_argument(
        "--matrix-lr", type=float, default=2.0, help="Muon's rate by AdamW's; 0: no Muon"
    )
    c.add_argument("--between", type=float, default=0.125, help="share between picture and noise")
    c.add_argument("--pure-noise", type=float, default=0.1, help="share of those at sigma 1")
    c.add_argument("--other-sizes", type=float, default=0.08, help="share of non-256x256 steps")
    c.add_argument("--eval-count", type=int, default=64, help="test captions a category")
    sub.choices["vae"].add_argument("--kl", type=float, default=2e-4)
    args = p.parse_args()
    os.makedirs(args.state, exist_ok=True)
    args.fn(args)


if __name__ == "__main__":
    main()
