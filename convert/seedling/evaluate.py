# SPDX-License-Identifier: Apache-2.0
"""Quick quality figures for a training stage; bench/quality is the real judge.

`python -m convert.seedling.evaluate --state DIR --variant ternary --size 256 384 --sheet OUT.png`
draws the sample sheet of a saved state (a CPU will do).
"""

import argparse
import itertools

import numpy as np
import torch
from PIL import Image

from . import compose, data, model, scenes, state, tokenizer

PROMPTS = (
    "a red apple on a blue background",
    "a bonsai on a white background",
    "a dog face",
    "a cat face and a dog face on a green background",
    "a red circle above a blue square",
    "a green star to the left of a purple hexagon on a yellow background",
    "three cherries on a pink background",
    "a small sailboat on a cyan background",
    "a big evergreen tree on an orange background",
    "a rocket to the right of a ringed planet on a black background",
    "two blue triangles on a gray background",
    "a pizza below a hamburger on a brown background",
    "a snowman on a navy to cyan gradient",
    "a fox on a blue background",
    "a guitar and a violin",
    "an orange ring on a green background",
    "a castle above a horse on a teal background",
    "a yellow star on a black background",
    "four red diamonds",
    "a big strawberry on a pink background",
    "a penguin",
    "a house to the left of a deciduous tree on a light blue background",
    "a sunflower on a gradient from blue to beige",
    "a robot on a gray background",
    "a red heart, a blue cross and a green oval on a white background",
    "two owls on navy",
    "four bananas on a purple background",
    "a lion, a tiger face and a bear on a lime background",
    "a parachute",
    "a photo of a cup of coffee on a beige background",
    "a pink circle under a teal rectangle",
    "an octopus above a fish on a blue to navy gradient",
    "a car",
    "three cars on a gray background",
    "a huge gem on a black background",
    "a violin on the left and a trumpet on the right on a red background",
    "a crown",
    "an umbrella on a yellow background",
    "a key and a lock on a green background",
    "a tiny purple star on a yellow background",
    "four roses on a white background",
    "a unicorn on a pink to purple gradient background",
    "a smiling face with sunglasses",
    "a volcano",
    "a dinosaur on a lime background",
    "two mushrooms on a brown background",
    "a cat",
    "an airplane above a mountain on a cyan background",
)


def picture_bytes(x):
    """[B, 3, H, W] in -1..1 to uint8 [B, H, W, 3]."""
    x = ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return x.permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def draw(net, latents, encode, captions, width, height, steps, device, batch=64, seed=42):
    """Sampled pictures, uint8 [n, H, W, 3]."""
    h, w, out = height // 16, width // 16, []
    gen = torch.Generator("cpu").manual_seed(seed)
    for i in range(0, len(captions), batch):
        ids, lengths = encode(captions[i : i + batch])
        noise = torch.randn(len(ids), h * w, 128, generator=gen).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            ctx = net.context(
                torch.tensor(ids, device=device), torch.tensor(lengths, device=device)
            )
            out.append(
                picture_bytes(latents.decode(model.sample(net, ctx, noise, h, w, steps), h, w))
            )
    return np.concatenate(out)


def psnr(a, b):
    """Per picture, dB."""
    e = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(e, 1e-3))


def identity(pictures, chosen, renderer, width, height, emoji_count):
    """Share of single-emoji pictures whose nearest sprite is the one asked for."""
    hits = 0
    for pic, scene in zip(pictures, chosen, strict=True):
        slot, thing = scene.objects[0]
        x, y, px = compose.slot_box(slot, width, height)
        dev = renderer.device
        ground = compose.background(scene.background, width, height)[y : y + px, x : x + px]
        ground = torch.from_numpy(ground).to(dev).permute(2, 0, 1)
        seen = torch.from_numpy(pic[y : y + px, x : x + px].copy()).to(dev).permute(2, 0, 1).float()
        atlas, best = renderer.sprites_at(px), []
        for lo in range(0, emoji_count, 256):
            s = atlas[lo : min(lo + 256, emoji_count)].float()
            cand = ground * (1 - s[:, 3:] / 255) + s[:, :3]
            best.append(((cand - seen) ** 2).mean((1, 2, 3)))
        hits += int(torch.cat(best).argmin()) == thing.sprite
    return hits / len(chosen)


def grid(pictures, columns):
    rows = [
        np.concatenate(list(pictures[i : i + columns]), 1)
        for i in range(0, len(pictures) // columns * columns, columns)
    ]
    return Image.fromarray(np.concatenate(rows, 0))


def report(net, latents, encode, renderer, size, out, count=64, steps=model.STEPS):
    """Print figures over held-out captions of each category and save the sample sheet."""
    grammar, dev = scenes.Grammar(), renderer.device
    emoji_count, everything = grammar.shape_base, []
    for category in scenes.CATEGORIES:
        chosen = list(itertools.islice(grammar.split(f"test/{category}", True, category), count))
        ideal = picture_bytes(renderer(data.layout(chosen), size, size))
        got = draw(net, latents, encode, [s.caption for s in chosen], size, size, steps, dev)
        p = psnr(got, ideal)
        everything.append(p)
        line = (
            f"  {category:14s} median {np.median(p):5.2f} dB, "
            f">20 dB {np.mean(p > 20):6.1%}, >25 dB {np.mean(p > 25):6.1%}"
        )
        if category == "single":
            one = [i for i, s in enumerate(chosen) if s.objects[0][1].sprite < emoji_count]
            top1 = identity(got[one], [chosen[i] for i in one], renderer, size, size, emoji_count)
            line += f", nearest sprite {top1:.1%}"
        print(line, flush=True)
    p = np.concatenate(everything)
    print(
        f"{steps} steps, {size} px: median {np.median(p):.2f} dB, >20 dB {np.mean(p > 20):.1%}, "
        f">25 dB {np.mean(p > 25):.1%}",
        flush=True,
    )
    grid(draw(net, latents, encode, list(PROMPTS), size, size, steps, dev), 8).save(out)


@torch.no_grad()
def report_vae(latents, renderer, size, out, count=256):
    """Reconstruction PSNR over unseen scenes; a sheet of originals above reconstructions."""
    chosen = list(itertools.islice(scenes.Grammar().split("vae-test", True), count))
    got, ideal, h = [], [], size // 16
    for i in range(0, count, 32):
        x = renderer(data.layout(chosen[i : i + 32]), size, size)
        ideal.append(picture_bytes(x))
        got.append(picture_bytes(latents.decode(latents.encode(x), h, h)))
    got, ideal = np.concatenate(got), np.concatenate(ideal)
    p = psnr(got, ideal)
    mse = 255**2 / 10 ** (p / 10)
    print(
        f"vae {size} px: mean {p.mean():.2f} dB, median {np.median(p):.2f} dB, worst "
        f"{p.min():.2f} dB, of mean squared error {10 * np.log10(255**2 / mse.mean()):.2f} dB",
        flush=True,
    )
    sheet = np.concatenate([v for i in (0, 8) for v in (ideal[i : i + 8], got[i : i + 8])])
    grid(sheet, 8).save(out)


def load(folder, variant, device):
    """(network, Latents) of a saved state, ready to draw."""
    vae, net = model.build_vae(), model.TextToVelocity(variant)
    for stem, module in (("vae", vae), (variant, net)):
        if not state.load_module(folder, stem, module):
            raise SystemExit(f"no state `{stem}` in {folder}: train it first")
    return net.to(device).eval(), model.Latents(vae.to(device).eval())


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--state", default=".seedling/state")
    p.add_argument("--tokenizer", default=".seedling/tokenizer")
    p.add_argument("--variant", choices=model.VARIANTS, default="ternary")
    p.add_argument("--size", type=int, nargs=2, default=(256, 256), help="width height")
    p.add_argument("--steps", type=int, default=model.STEPS)
    p.add_argument("--prompts", nargs="*", default=list(PROMPTS))
    p.add_argument("--columns", type=int, default=8)
    p.add_argument("--sheet", required=True)
    a = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, latents = load(a.state, a.variant, device)
    pictures = draw(
        net, latents, tokenizer.Encoder(a.tokenizer), a.prompts, *a.size, a.steps, device, batch=8
    )
    grid(pictures, a.columns).save(a.sheet)


if __name__ == "__main__":
    main()
