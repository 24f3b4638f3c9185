# SPDX-License-Identifier: Apache-2.0
"""Training stages of the seedling. Each stops by itself after --seconds and always saves.

    python -m convert.seedling.train vae --seconds 400
    python -m convert.seedling.train dit --variant ternary --seconds 450 --lr 1.2e-3 1e-3
    python -m convert.seedling.train dit --variant ternary --seconds 450 --lr 1e-3 1e-5 ...

A stage goes on from the state in --state when there is one. Under torchrun it uses every GPU.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from . import data, evaluate, model, sprites, state, tokenizer

# (width, height) of the pictures that are not 256 x 256.
OTHER_SIZES = (
    (128, 128),
    (192, 192),
    (320, 320),
    (384, 384),
    (256, 384),
    (384, 256),
    (192, 320),
    (320, 192),
    (128, 192),
    (192, 128),
)


class Stage:
    """Device, ranks, wall clock, learning rate, averaged weights: what both trainings share."""

    def __init__(self, args):
        self.started = time.time()
        self.args, self.world = args, int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", self.rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        if self.world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        torch.manual_seed(args.seed * 1000 + self.rank)
        self.step, self.progress, self.pictures = 0, 0.0, 0
        self.mean_loss = None
        art = sprites.Sprites(args.sprites)
        self.renderer = data.Renderer(art, self.device)
        self.batches = data.loader(
            args.batch, f"{args.seed}/{self.rank}", args.tokenizer, args.workers
        )

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def compiled(self, fn):
        return torch.compile(fn, dynamic=False) if self.args.compile else fn

    def optimise(self, params, ema_decay):
        """Take the parameters to train; every rank starts from rank 0's."""
        self.params = [p for p in params if p.requires_grad]
        if self.world > 1:
            for p in self.params:
                dist.broadcast(p.data, 0)
        self.ema, self.ema_decay = [p.detach().clone() for p in self.params], ema_decay
        self.opt = torch.optim.AdamW(
            self.params,
            lr=0.0,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=self.device.type == "cuda",
        )

    def running(self):
        """True until the time is over; keeps the ranks' clocks and learning rates equal."""
        a = self.args
        if self.step % 10 == 0:
            now = torch.tensor([(time.time() - self.started) / a.seconds], device=self.device)
            if self.world > 1:
                dist.broadcast(now, 0)
            self.progress = now.item()
        warm = min(1.0, (self.step + 1) / a.warmup)
        lr = a.lr[0] + (a.lr[1] - a.lr[0]) * min(1.0, self.progress)
        for g in self.opt.param_groups:
            g["lr"] = lr * warm
        return self.progress < 1 and self.step < a.max_steps

    def update(self, loss, pictures):
        """Backward, average over the ranks, step, moving average of the weights."""
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        grads = [p.grad for p in self.params if p.grad is not None]
        if self.world > 1:
            flat = torch._utils._flatten_dense_tensors(grads)
            dist.all_reduce(flat)
            flat /= self.world
            for g, r in zip(grads, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
                g.copy_(r)
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.opt.step()
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], 1 - decay)
        self.step += 1
        self.pictures += pictures * self.world
        loss = loss.detach()
        self.mean_loss = loss if self.mean_loss is None else self.mean_loss.lerp(loss, 0.02)

    def log(self, extra=""):
        if self.rank or self.step % self.args.log_every:
            return
        t = time.time() - self.started
        if self.step == self.args.log_every:  # compilation lies before this mark
            self.mark = t, self.pictures
        rate = (self.pictures - self.mark[1]) / max(t - self.mark[0], 1e-6)
        print(
            f"step {self.step} {t:.0f} s loss {self.mean_loss.item():.5f} {extra} "
            f"{rate:.0f} pictures/s",
            flush=True,
        )

    def finish(self):
        """Put the averaged weights in place; only rank 0 goes on to save."""
        with torch.no_grad():
            for p, e in zip(self.params, self.ema, strict=True):
                p.copy_(e)
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
        return self.rank == 0

    def note(self, stem, **figures):
        """Append this stage to the training diary in the state folder."""
        line = dict(
            stage=stem,
            steps=self.step,
            pictures=self.pictures,
            world=self.world,
            seconds=round(time.time() - self.started),
            **figures,
            args={k: v for k, v in vars(self.args).items() if k != "fn"},
        )
        with open(Path(self.args.state) / "diary.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")


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
    st = Stage(args)
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
    st.note("vae")
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


def noise_levels(n, device, pure):
    """Training noise levels: a share `pure` of exactly 1, a quarter of the sampler's others, the
    rest shifted logit-normal. At 1 the caption alone must give the picture, so that is where the
    sprites are learned; at low noise the input already shows them."""
    s = model.shifted(torch.sigmoid(torch.randn(n, device=device)))
    r = torch.rand(n, device=device)
    fixed = torch.tensor(model.schedule()[1:-1], device=device)
    own = fixed[torch.randint(len(fixed), (n,), device=device)]
    return torch.where(r < pure, 1.0, torch.where(r < pure + 0.25, own, s))


def train_dit(args):
    st = Stage(args)
    vae = model.build_vae(args.toy)
    if not state.load_module(args.state, "vae", vae):
        raise SystemExit(f"no VAE state in {args.state}: run the stage `vae` first")
    vae = vae.to(st.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    latents = model.Latents(vae)
    net = model.TextToVelocity(args.variant, args.toy)
    resumed = state.load_module(args.state, args.variant, net)
    net = net.to(st.device)
    st.optimise(net.parameters(), 0.999)
    encode_square, context = st.compiled(latents.encode), st.compiled(net.context)
    if args.compile:  # all blocks of a kind share one compilation
        for block in (*net.dit.transformer_blocks, *net.dit.single_transformer_blocks):
            block.compile(dynamic=False)
    if st.rank == 0:
        print(
            f"{args.variant}, {'resumed' if resumed else 'from scratch'}, "
            f"{sum(p.numel() for p in st.params)} parameters, {st.world} ranks",
            flush=True,
        )
    choose = random.Random(args.seed)  # equal on all ranks: sizes differ in cost
    while st.running():
        other, rollout = choose.random() < args.other_sizes, choose.random() < args.rollout
        rollout = rollout and st.progress > 0.5  # its own samples teach little before
        width, height = choose.choice(OTHER_SIZES) if other else (args.size, args.size)
        stop = choose.randrange(1, model.STEPS) if rollout else None
        batch = next(st.batches)
        if other:
            with torch.compiler.set_stance("force_eager"):
                loss, n = dit_loss(st, net, batch, latents.encode, net.context, width, height, stop)
        else:
            loss, n = dit_loss(st, net, batch, encode_square, context, width, height, stop)
        st.update(loss, n)
        st.log()
    if not st.finish():
        return
    state.save_module(args.state, args.variant, net.state_dict())
    st.note(args.variant, loss=round(st.mean_loss.item(), 5))
    encode = tokenizer.Encoder(args.tokenizer)
    with torch.compiler.set_stance("force_eager"):
        evaluate.report(
            net,
            latents,
            encode,
            st.renderer,
            args.size,
            Path(args.state) / f"{args.variant}-{args.size}.png",
            args.eval_count,
        )


def dit_loss(st, net, batch, encode, encode_text, width, height, stop):
    """Velocity error of one batch. With `stop` the model meets its own sample after that many
    sampler steps, not the true noised latent: a caption names one picture, so the right velocity
    from any point x is (x - picture) / sigma."""
    h, w = height // 16, width // 16
    n = min(st.args.batch, max(1, st.args.batch * 320 // (h * w + model.MAX_TOKENS)))
    ids = batch["ids"][:n].to(st.device, non_blocking=True)
    lengths = batch["lengths"][:n].to(st.device, non_blocking=True)
    with torch.no_grad(), st.autocast():
        x0 = encode(st.renderer(batch, width, height)[:n])
    noise = torch.randn_like(x0)
    with st.autocast():
        context = encode_text(ids, lengths)
        if stop is None:
            s = noise_levels(n, st.device, st.args.pure_noise)
            x = torch.lerp(x0, noise, s[:, None, None])
        else:
            x = model.sample(net, context.detach(), noise, h, w, stop=stop)
            s = torch.full((n,), model.schedule()[stop], device=st.device)
        v = net.velocity(x, s, context, h, w)
    return F.mse_loss(v.float(), (x - x0) / s[:, None, None]), n


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    sub = p.add_subparsers(dest="stage", required=True)
    for name, fn, batch, lr in (
        ("vae", train_vae, 32, (7e-4, 1e-5)),
        ("dit", train_dit, 256, (1.2e-3, 1e-3)),
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
    c.add_argument("--pure-noise", type=float, default=0.35, help="share trained at sigma 1")
    c.add_argument("--other-sizes", type=float, default=0.15, help="share of non-256x256 steps")
    c.add_argument(
        "--rollout",
        type=float,
        default=0.0,
        help="share of steps that start from own samples (second half only)",
    )
    c.add_argument("--eval-count", type=int, default=64, help="test captions a category")
    sub.choices["vae"].add_argument("--kl", type=float, default=2e-4)
    args = p.parse_args()
    os.makedirs(args.state, exist_ok=True)
    args.fn(args)


if __name__ == "__main__":
    main()
