# SPDX-License-Identifier: Apache-2.0
"""Training state: bfloat16 weights in pieces of at most 16 MB, so that it travels in small files.

A piece is an npz. Each tensor is stored as two byte planes (high, low): the high bytes of weights
are much alike, so deflate saves about a quarter.
"""

import glob
import os

import numpy as np
import torch

PIECE_BYTES = 15_500_000  # raw bytes a piece; deflate only makes it smaller


def save(folder, stem, tensors):
    """Write {name: tensor} as folder/stem-NN.npz. Buffers of integers are kept as they are."""
    os.makedirs(folder, exist_ok=True)
    pieces, room = [{}], PIECE_BYTES
    for name, t in tensors.items():
        t = t.detach().cpu()
        if t.is_floating_point() and not name.startswith("f32/"):
            bits = t.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
            arrays = {
                "h/" + name: (bits >> 8).astype(np.uint8),
                "l/" + name: (bits & 255).astype(np.uint8),
            }
        else:
            arrays = {"x/" + name: t.numpy()}
        size = sum(a.nbytes for a in arrays.values())
        if size > room:
            pieces.append({})
            room = PIECE_BYTES
        pieces[-1].update(arrays)
        room -= size
    for old in glob.glob(f"{folder}/{stem}-*.npz"):
        os.remove(old)
    for i, arrays in enumerate(pieces):
        np.savez_compressed(f"{folder}/{stem}-{i:02d}.npz", **arrays)


def load(folder, stem):
    """{name: float32 tensor} of a saved state, or None when there is none."""
    files = sorted(glob.glob(f"{folder}/{stem}-*.npz"))
    out = {}
    for path in files:
        z = np.load(path)
        for key in z.files:
            kind, name = key.split("/", 1)
            if kind == "h":
                bits = (z[key].astype(np.uint16) << 8) | z["l/" + name]
                out[name] = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()
            elif kind == "x":
                out[name] = torch.from_numpy(z[key])
    return out or None


def save_module(folder, stem, module_state):
    """A state_dict; running statistics stay float32."""
    save(folder, stem, {("f32/" + k if "running_" in k else k): v for k, v in module_state.items()})


def load_module(folder, stem, module):
    """Load into a module when the state exists; returns whether it did."""
    tensors = load(folder, stem)
    if tensors is None:
        return False
    module.load_state_dict({k.removeprefix("f32/"): v for k, v in tensors.items()})
    return True
