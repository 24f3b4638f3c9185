# SPDX-License-Identifier: Apache-2.0
"""Draws prompts with the bonsai package, or with bonsai-cli where it is not installed, and keeps
the pictures: a run that was stopped goes on, and a finished one is only judged again.

A folder of pictures belongs to one model file, one build of the engine and one group of settings.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo


@dataclass(frozen=True)
class Settings:
    """How to draw; None is the model's default."""

    device: str = "cpu"
    precision: str = "fast"
    seed: int = 0
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    threads: int | None = None  # not part of the key: every thread count draws the same


def file_hash(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def variant(model):
    """The value of bonsai.variant in a GGUF file, "?" if it has none."""
    key = b"bonsai.variant\x08\x00\x00\x00"  # 8: the type is string, a 64-bit length follows
    with open(model, "rb") as f:
        head = f.read(1 << 16)
    found = re.search(re.escape(key) + rb"(.)\0{7}", head, re.DOTALL)
    return head[found.end() : found.end() + found[1][0]].decode() if found else "?"


class _Package:
    def __init__(self):
        import bonsai
        from bonsai import _lib

        self.open, self.file, self.engine = bonsai.Engine, _lib._library_path(), None

    def draw(self, model, s, prompt, seed):
        if self.engine is None:
            self.engine = self.open(model, s.device, s.threads, s.precision)
        return self.engine.generate(prompt, s.width, s.height, s.steps, seed)

    def close(self):
        if self.engine is not None:
            self.engine.close()
            self.engine = None


class _Program:
    def __init__(self):
        found = shutil.which("bonsai-cli")
        if found is None:
            raise SystemExit(
                "neither the Python package bonsai nor bonsai-cli on PATH was found; "
                "install one (pip install .) or add its folder to PATH"
            )
        self.file = Path(found)

    def draw(self, model, s, prompt, seed):
        options = dict(width=s.width, height=s.height, steps=s.steps, threads=s.threads)
        command = [self.file, "--model", model, "--device", s.device, "--precision", s.precision]
        command += ["--prompt", prompt, "--seed", str(seed), "--quiet"]
        for name, value in options.items():
            command += [f"--{name}", str(value)] if value is not None else []
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "picture.png"
            subprocess.run([*command, "--output", out], check=True)
            return Image.open(out).convert("RGB")

    def close(self):
        pass


def drawing_engine():
    """The bonsai package if it can be imported, else bonsai-cli."""
    try:
        return _Package()
    except ImportError:
        return _Program()


class Album:
    """The pictures of one model with one group of settings."""

    def __init__(self, engine, model, settings, root):
        self.engine, self.model, self.settings = engine, Path(model), settings
        identity = asdict(settings) | {
            "model": file_hash(model),
            "engine": file_hash(engine.file),
            "threads": None,
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        device = settings.device.replace(":", "")
        self.folder = Path(root) / f"{self.model.stem}-{device}-{settings.precision}-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(identity, indent=1) + "\n")

    def seed(self, index):
        """Each prompt has its own noise, the same for all models and settings."""
        return self.settings.seed + index

    def picture(self, index, entry):
        """(uint8 [height, width, 3], seconds it took to draw) of one entry; drawn when missing."""
        mark = hashlib.sha256(entry.prompt.encode()).hexdigest()[:8]
        path = self.folder / f"{entry.id}-{self.seed(index)}-{mark}.png"
        if not path.exists():
            began = time.perf_counter()
            image = self.engine.draw(self.model, self.settings, entry.prompt, self.seed(index))
            info = PngInfo()
            info.add_text("seconds", f"{time.perf_counter() - began:.3f}")
            unfinished = path.with_suffix(".part")
            image.save(unfinished, "PNG", pnginfo=info)
            os.replace(unfinished, path)
        with Image.open(path) as image:
            return np.array(image.convert("RGB")), float(image.info["seconds"])
