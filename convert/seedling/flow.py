# SPDX-License-Identifier: Apache-2.0
"""Training of text encoder and transformer together, mostly on the sampler's own path.

A caption names one picture x0, so the right velocity from any point x at noise level s is
(x - x0) / s. A cohort of scenes starts from pure noise and is moved on by the network's own steps;
at each of them the network learns to go to x0 from where it got to itself. Such a point holds
nothing of the true picture, so the words must give it at every step (a point between x0 and noise
would show it), the points are those that drawing meets, and a scene is drawn and encoded once for
four uses. Some points between x0 and noise are learned as well, for other step counts.
"""

import collections
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from . import evaluate, model, state, tokenizer
from .stage import Stage

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
# Training steps of its size between two sampler steps of a cohort, so that batches differ.
DELAY, OTHER_DELAY = 8, 2


@dataclass
class Cohort:
    """Scenes at one step of the sampler; x is where the network's own steps have led."""

    x0: torch.Tensor  # [n, tokens, 128]
    x: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor
    step: int = 0


class Trainer:
    def __init__(self, args):
        self.args = args
        self.own = round(args.batch * (1 - args.between) / model.STEPS)  # scenes of one cohort
        self.between = args.batch - self.own * model.STEPS
        self.st = Stage(args, self.own)
        device = self.st.device
        vae = model.build_vae(args.toy)
        if not state.load_module(args.state, "vae", vae):
            raise SystemExit(f"no VAE state in {args.state}: run the stage `vae` first")
        vae = vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.latents = model.Latents(vae)
        self.net = model.TextToVelocity(args.variant, args.toy)
        self.resumed = self.resume()
        self.net = self.net.to(device)
        named = self.net.named_parameters() if args.matrix_lr else ()
        matrices = [p for n, p in named if is_matrix(n, p)]
        self.st.optimise(self.net.parameters(), 0.999, matrices)
        self.encode = self.st.compiled(self.latents.encode)
        self.context = self.st.compiled(self.net.context)
        if args.compile:  # all blocks of a kind share one compilation
            for block in (
                *self.net.dit.transformer_blocks,
                *self.net.dit.single_transformer_blocks,
            ):
                block.compile(dynamic=False)
        # Of each size, the cohorts that wait at each step of the sampler.
        self.waiting = collections.defaultdict(
            lambda: [collections.deque() for _ in range(model.STEPS)]
        )
        self.sigmas = model.schedule()

    def resume(self):
        """Weights of this variant, else of --start; a dense model starts from the values that a
        low-bit one computes with, a low-bit one from the float weights behind them."""
        a, net = self.args, self.net
        if state.load_module(a.state, a.variant, net):
            return a.variant
        if a.start is None:
            return None
        if not state.load_module(a.state, a.start, net):
            raise SystemExit(f"no state `{a.start}` in {a.state}")
        if a.variant == "dense" and a.start != "dense":
            with torch.no_grad():
                for name, p in net.dit.named_parameters():
                    if model.is_block_linear(name):
                        p.copy_(model.quantise(p, a.start))
        return a.start

    @torch.no_grad()
    def fresh(self, width, height):
        """New scenes at the start of the sampler."""
        batch, device = next(self.st.batches), self.st.device
        with self.st.autocast():
            x0 = self.encode(self.st.renderer(batch, width, height))
        ids, lengths = (batch[k].to(device, non_blocking=True) for k in ("ids", "lengths"))
        return Cohort(x0, torch.randn_like(x0), ids, lengths)

    def cohorts(self, width, height):
        """One cohort at each step of the sampler (at first all are new)."""
        delay = DELAY if width == height == self.args.size else OTHER_DELAY
        return [
            queue.popleft() if len(queue) >= delay else self.fresh(width, height)
            for queue in self.waiting[width, height]
        ]

    def loss(self, width, height):
        """Loss over four cohorts, which move on, and some points between picture and noise."""
        own = self.cohorts(width, height)
        x0, x, ids, lengths = (
            torch.cat([getattr(c, f) for c in own]) for f in ("x0", "x", "ids", "lengths")
        )
        s = torch.cat([torch.full((len(c.x),), self.sigmas[c.step]) for c in own]).to(x.device)
        pick = torch.randperm(len(x), device=x.device)[: self.between]
        level = noise_levels(len(pick), x.device, self.args.pure_noise)
        seen = torch.lerp(x0[pick], torch.randn_like(x0[pick]), level[:, None, None])
        x0, x, s = torch.cat([x0, x0[pick]]), torch.cat([x, seen]), torch.cat([s, level])
        with self.st.autocast():
            context = self.context(ids, lengths)
            context = torch.cat([context, context[pick]])
            v = self.net.velocity(x, s, context, height // 16, width // 16).float()
        for c, step in zip(own, v.detach().split(self.own), strict=False):
            c.x = c.x + (self.sigmas[c.step + 1] - self.sigmas[c.step]) * step
            c.step += 1
            if c.step < model.STEPS:
                self.waiting[width, height][c.step].append(c)
        return F.mse_loss(v, (x - x0) / s[:, None, None]), len(x)

    def other_loss(self, width, height):
        """The same at another size, for which nothing has been compiled."""
        with torch.compiler.set_stance("force_eager"):
            return self.loss(width, height)

    def run(self):
        a, st = self.args, self.st
        if st.rank == 0:
            print(
                f"{a.variant} from {self.resumed or 'scratch'}, "
                f"{sum(p.numel() for p in st.params)} parameters, {st.world} ranks",
                flush=True,
            )
        choose = random.Random(a.seed)  # equal on all ranks: sizes differ in cost
        while st.running():
            other, size = choose.random() < a.other_sizes, choose.choice(OTHER_SIZES)
            st.update(*(self.other_loss(*size) if other else self.loss(a.size, a.size)))
            st.log()
        if st.finish():
            self.report()

    def report(self):
        a, st = self.args, self.st
        out = Path(a.out or a.state)
        state.save_module(out, a.variant, self.net.state_dict())
        st.note(out, a.variant, loss=round(st.mean_loss.item(), 5), start=self.resumed)
        with torch.compiler.set_stance("force_eager"):
            evaluate.report(
                self.net,
                self.latents,
                tokenizer.Encoder(a.tokenizer),
                st.renderer,
                a.size,
                out / f"{a.variant}-{a.size}.png",
                a.eval_count,
            )


def is_matrix(name, p):
    """True for weights that Muon trains: the linears of the blocks and of the text encoder's
    layers, and the projection of the text features."""
    inner = "transformer_blocks." in name or "text.layers." in name or "context_embedder" in name
    return inner and p.ndim == 2


def noise_levels(n, device, pure):
    """Noise levels of points between picture and noise: a share `pure` of exactly 1, a quarter of
    the sampler's others, the rest shifted logit-normal."""
    s = model.shifted(torch.sigmoid(torch.randn(n, device=device)))
    r = torch.rand(n, device=device)
    fixed = torch.tensor(model.schedule()[1:-1], device=device)
    own = fixed[torch.randint(len(fixed), (n,), device=device)]
    return torch.where(r < pure, 1.0, torch.where(r < pure + 0.25, own, s))


def train(args):
    Trainer(args).run()
