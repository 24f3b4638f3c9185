# SPDX-License-Identifier: Apache-2.0
"""The golden cases: which checkpoint, which prompt, which picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from support.configs import Recipe

# About 1,500 tokens: far over both text lengths (512 and 64), so the template's end is cut off.
LONG_PROMPT = " ".join(
    f"In panel {n} a {'small' if n % 3 else 'giant'} bonsai, scene {n * n} of the story,"
    " leans over the crooked bridge while lanterns drift past."
    for n in range(60)
)
# Scripts, a decomposed accent (NFC joins it), emoji with joiners, a special token as plain text.
MIXED_PROMPT = (
    "雪の中の盆栽 — a 盆栽 cafe\u0301, naïve 「静かな庭」 눈 속의 나무 дом ❄️🌳👩‍🎨\t2026 <|im_end|>"
    "<think> ok"
)
PROMPTS = {"empty": "", "long": LONG_PROMPT, "mixed": MIXED_PROMPT}
FAST_PROMPT = "A small juniper bonsai on a weathered cedar table, soft window light, 3 birds"


@dataclass(frozen=True)
class Case:
    """One reference run. All fields are what the engine's probe gets, too."""

    name: str
    recipe: Recipe
    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance: float = 1.0
    noise_dtype: str = "f32"

    def as_dict(self) -> dict:
        return asdict(self)


def _stage_cases() -> list[Case]:
    ternary = Recipe("tiny", "ternary")
    binary = Recipe("tiny", "binary", outlier=60.0, seed=1)
    odd = Recipe("odd", "dense", seed=2)
    decoder = Recipe("tiny", "dense", small_decoder=True, seed=3)
    # name, recipe, prompt, width, height, steps, seed, guidance
    table = [
        ("ternary-empty", ternary, "empty", 64, 96, 1, 42, 1.0),
        ("ternary-long", ternary, "long", 128, 80, 2, 7, 1.0),
        ("ternary-mixed", ternary, "mixed", 96, 96, 4, 123456789, 1.0),
        ("binary-empty", binary, "empty", 96, 64, 2, 0, 1.0),
        ("binary-long", binary, "long", 80, 128, 1, 2**32 + 5, 1.0),
        ("binary-mixed", binary, "mixed", 64, 96, 4, 2**63 + 11, 1.0),
        ("odd-empty", odd, "empty", 96, 80, 3, 1, 4.0),
        ("odd-long", odd, "long", 64, 96, 3, 2, 4.0),
        ("odd-mixed", odd, "mixed", 128, 80, 3, 3, 4.0),
        ("decoder-mixed", decoder, "mixed", 112, 48, 1, 4, 1.0),
    ]
    return [Case(n, r, PROMPTS[p], w, h, k, s, g) for n, r, p, w, h, k, s, g in table]


def _fast_cases() -> list[Case]:
    cases = []
    for config in ("tiny", "small"):
        for weights in ("ternary", "binary"):
            for outlier in (0.0, 60.0, 3000.0):
                recipe = Recipe(config, weights, outlier)
                name = f"fast-{config}-{weights}-{outlier:g}"
                cases.append(Case(name, recipe, FAST_PROMPT, 128, 128, 1, 42, noise_dtype="bf16"))
    return cases


STAGE_CASES = _stage_cases()
# Velocity of the first step at 128x128 from bf16 noise: int8 activations against bf16 ones.
FAST_CASES = _fast_cases()
ALL_CASES = {case.name: case for case in STAGE_CASES + FAST_CASES}
