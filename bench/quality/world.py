# SPDX-License-Identifier: Apache-2.0
"""The prompt list: captions with the scenes they mean, in terms of the recipe in convert/seedling.

A line of prompts.jsonl names sprites and slots by word, so it stays valid when the recipe's tables
are reordered:
    {"id": "position-003", "category": "position", "prompt": "a dog above a cat on red",
     "background": ["red"], "objects": [{"slot": "top", "sprite": "dog"}, ...]}
Shapes also have a "color"; a background of two colours is a gradient from top to bottom.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "convert"))

from seedling import compose, scenes, words  # noqa: E402

PROMPTS = Path(__file__).with_name("prompts.jsonl")

# Ours -> the grammar's. As in GenEval: counting and position also hold emoji, binding is shapes
# only, so that nothing but the caption ties a colour to its shape.
CATEGORIES = {
    "single": "single",
    "two_objects": "two_objects",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "binding": "binding",
}


@dataclass(frozen=True)
class Entry:
    """A prompt and the scene it asks for."""

    id: str
    category: str
    prompt: str
    scene: scenes.Scene

    def ideal(self, sprites, width, height):
        """uint8 [height, width, 3]: what a perfect model would draw."""
        return compose.compose(self.scene, sprites, width, height)


def sprite_names():
    """Name of every sprite, in sprite order."""
    return [name for _, name, _ in words.emoji_table()] + [
        f"{name} shape" for name in words.SHAPE_NAMES
    ]


def to_json(entry_id, scene):
    """The line of the prompt list, as a dict."""
    names, objects = sprite_names(), []
    for slot, thing in scene.objects:
        item = {"slot": slot, "sprite": names[thing.sprite]}
        if thing.color:
            item["color"] = thing.color
        objects.append(item)
    return {
        "id": entry_id,
        "category": entry_id.rsplit("-", 1)[0],
        "prompt": scene.caption,
        "background": list(scene.background),
        "objects": objects,
    }


def from_json(item, index):
    """An Entry; `index` maps sprite names to sprites."""
    objects = [
        (o["slot"], scenes.Thing(index[o["sprite"]], (o["sprite"],), o.get("color")))
        for o in item["objects"]
    ]
    scene = scenes.Scene(item["prompt"], item["category"], tuple(item["background"]), objects)
    return Entry(item["id"], item["category"], item["prompt"], scene)


def load(path=PROMPTS, count=None):
    """The first `count` entries. The categories alternate, so every prefix holds all of them."""
    index = {name: i for i, name in enumerate(sprite_names())}
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [from_json(json.loads(line), index) for line in lines[:count]]
