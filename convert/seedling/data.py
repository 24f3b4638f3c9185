# SPDX-License-Identifier: Apache-2.0
"""Training batches: captions made on CPU workers, pictures pasted together on the GPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from . import compose, scenes, tokenizer, words

COLOR_INDEX = {c: i for i, c in enumerate(scenes.COLOR_NAMES)}


def layout(batch):
    """Scenes as tensors. `paste` rows (picture, sprite, colour or -1) are grouped by slot."""
    rows, counts = [], []
    for slot in scenes.SLOT_NAMES:
        part = [
            (b, t.sprite, COLOR_INDEX[t.color] if t.color else -1)
            for b, s in enumerate(batch)
            for name, t in s.objects
            if name == slot
        ]
        rows += part
        counts.append(len(part))
    ground = [(COLOR_INDEX[s.background[0]], COLOR_INDEX[s.background[-1]]) for s in batch]
    return dict(background=torch.tensor(ground), paste=torch.tensor(rows), counts=counts)


class Batches(IterableDataset):
    """Endless training batches; every (seed, worker) pair draws its own scenes."""

    def __init__(self, batch, seed, tokenizer_dir):
        self.batch, self.seed, self.dir = batch, seed, tokenizer_dir

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        grammar = scenes.Grammar(scenes.TRAINING_SHAPE_SHARE)
        stream = grammar.split(f"{self.seed}/{info.id if info else 0}", held=False)
        encode = tokenizer.Encoder(self.dir)
        while True:
            batch = [next(stream) for _ in range(self.batch)]
            ids, lengths = encode([s.caption for s in batch])
            yield dict(ids=torch.tensor(ids), lengths=torch.tensor(lengths), **layout(batch))


def loader(batch, seed, tokenizer_dir, workers):
    return iter(
        DataLoader(
            Batches(batch, seed, tokenizer_dir),
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
        )
    )


class Renderer:
    """Draws laid-out scenes on the device, pixel for pixel as compose.compose does."""

    def __init__(self, sprites, device, threads=8):
        self.sprites, self.device, self.threads = sprites, device, threads
        self.atlas = {}
        self.colors = torch.tensor(
            [words.COLORS[c] for c in scenes.COLOR_NAMES], dtype=torch.float32, device=device
        )

    def sprites_at(self, px):
        """uint8 [sprites, 4, px, px], made once for each size."""
        if px not in self.atlas:
            with ThreadPoolExecutor(self.threads) as pool:  # the resize runs without the GIL
                stack = list(pool.map(lambda i: self.sprites.at(i, px), range(len(self.sprites))))
            self.sprites.at.cache_clear()
            self.atlas[px] = (
                torch.from_numpy(np.stack(stack)).to(self.device).permute(0, 3, 1, 2).contiguous()
            )
        return self.atlas[px]

    @torch.no_grad()
    def __call__(self, batch, width, height):
        """[B, 3, height, width] in -1..1, channels last."""
        c = self.colors[batch["background"].to(self.device, non_blocking=True)]
        t = ((torch.arange(height, device=self.device) + 0.5) / height)[None, None, :, None]
        img = c[:, 0, :, None, None] + (c[:, 1] - c[:, 0])[:, :, None, None] * t
        img = img.expand(-1, 3, height, width).contiguous(memory_format=torch.channels_last)
        paste, start = batch["paste"].to(self.device, non_blocking=True), 0
        for slot, n in zip(scenes.SLOT_NAMES, batch["counts"], strict=True):
            if n:
                which, sprite, color = paste[start : start + n].unbind(1)
                x, y, px = compose.slot_box(slot, width, height)
                s = self.sprites_at(px)[sprite].float()
                tint = torch.where(color[:, None] < 0, 1.0, self.colors[color.clamp(min=0)] / 255)
                old = img[which, :, y : y + px, x : x + px]
                img[which, :, y : y + px, x : x + px] = (
                    old * (1 - s[:, 3:] / 255) + s[:, :3] * tint[:, :, None, None]
                )
                start += n
        return img.add_(0.5).floor_().clamp_(0, 255) / 127.5 - 1
