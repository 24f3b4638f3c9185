# SPDX-License-Identifier: Apache-2.0
"""What both trainings share: device, ranks, wall clock, learning rate, averaged weights, diary."""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from . import data, muon, sprites


class Stage:
    """One run of a training loop; `captions` a batch come from the loader."""

    def __init__(self, args, captions):
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
            captions, f"{args.seed}/{self.rank}", args.tokenizer, args.workers
        )

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def compiled(self, fn):
        return torch.compile(fn, dynamic=False) if self.args.compile else fn

    def optimise(self, params, ema_decay, matrices=()):
        """Take the parameters to train; every rank starts from rank 0's. `matrices` among them
        are left to Muon."""
        self.params = [p for p in params if p.requires_grad]
        if self.world > 1:
            for p in self.params:
                dist.broadcast(p.data, 0)
        self.ema, self.ema_decay = [p.detach().clone() for p in self.params], ema_decay
        inner = {id(p) for p in matrices}
        rest = [p for p in self.params if id(p) not in inner]
        adam = torch.optim.AdamW(
            rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=self.device.type == "cuda"
        )
        self.optimisers = [adam]
        if inner:
            self.optimisers.append(muon.Muon([p for p in self.params if id(p) in inner]))

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
        for opt in self.optimisers:
            scale = a.matrix_lr if isinstance(opt, muon.Muon) else 1.0
            for g in opt.param_groups:
                g["lr"] = lr * warm * scale
        return self.progress < 1 and self.step < a.max_steps

    def update(self, loss, pictures):
        """Backward, average over the ranks, step, moving average of the weights."""
        for p in self.params:
            p.grad = None
        loss.backward()
        grads = [p.grad for p in self.params if p.grad is not None]
        if self.world > 1:
            flat = torch._utils._flatten_dense_tensors(grads)
            dist.all_reduce(flat)
            flat /= self.world
            for g, r in zip(grads, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
                g.copy_(r)
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for opt in self.optimisers:
            opt.step()
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

    def note(self, folder, stem, **figures):
        """Append this stage to the training diary in a state folder."""
        line = dict(
            stage=stem,
            steps=self.step,
            pictures=self.pictures,
            world=self.world,
            seconds=round(time.time() - self.started),
            **figures,
            args={k: v for k, v in vars(self.args).items() if k != "fn"},
        )
        with open(Path(folder) / "diary.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
