# SPDX-License-Identifier: Apache-2.0
"""Writes prompts.jsonl: `python bench/quality/make_prompts.py` (same file on every machine).

Only captions on the held-out side of the recipe's split are taken, so training never sees one of
them. A model's results are comparable only over the same list: change it with care.
"""

import itertools
import json

import world
from seedling import scenes, words

SEED = "bench/quality/1"
EACH = 90  # prompts in each category


def ambiguous_names(grammar):
    """Names, singular or plural, that mean two things: "hearts" is also a suit, "two hearts" one
    emoji as well as two shapes."""
    owners = {}
    things = [*grammar.emoji] + [scenes.Thing(-i, (s,)) for i, s in enumerate(words.SHAPES, 1)]
    for thing in things:
        for name in thing.names:
            for form in (name, words.plural(name)):
                owners.setdefault(form, set()).add(thing.sprite)
    counts = tuple(f"{word} " for group in words.COUNT_WORDS.values() for word in group)
    return {form for form, s in owners.items() if len(s) > 1 or form.startswith(counts)}


def choose(grammar, category, count):
    """`count` held-out scenes, no two of the same things, none with an ambiguous emoji name."""
    ambiguous = ambiguous_names(grammar)
    captions, things, out = set(), set(), []
    for scene in grammar.split(f"{SEED}/{category}", True, world.CATEGORIES[category]):
        key = tuple(sorted((t.sprite, t.color or "") for _, t in scene.objects))
        caption = scenes.normalise(scene.caption)
        unclear = any(
            t.plain and f" {form} " in f" {caption.replace(',', ' ')} "
            for _, t in scene.objects
            for form in ambiguous & {*t.names, *map(words.plural, t.names)}
        )
        if caption in captions or key in things or unclear:
            continue
        captions.add(caption)
        things.add(key)
        out.append(scene)
        if len(out) == count:
            return out


def main():
    grammar = scenes.Grammar()
    columns = []
    for category in world.CATEGORIES:
        chosen = choose(grammar, category, EACH)
        columns.append([world.to_json(f"{category}-{i:03d}", s) for i, s in enumerate(chosen)])
    with open(world.PROMPTS, "w", encoding="utf-8") as f:
        for item in itertools.chain(*zip(*columns, strict=True)):
            f.write(json.dumps(item, ensure_ascii=False) + "\n")
    print(f"{world.PROMPTS}: {EACH * len(columns)} prompts")


if __name__ == "__main__":
    main()
