# SPDX-License-Identifier: Apache-2.0
"""The checker of bench/quality against pictures whose faults are known."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "quality"))

import checker  # noqa: E402
import run  # noqa: E402
import world  # noqa: E402
from seedling import compose, scenes, sprites, words  # noqa: E402

SIDE = 128
EMOJI = len(words.emoji_table())
needs_font = pytest.mark.skipif(
    not Path(sprites.FONT).exists(),
    reason="the emoji are drawn from the Debian package fonts-noto-color-emoji: install it",
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Sprites without a font: every emoji blank, the shapes as always."""
    blank = io.BytesIO()
    Image.new("RGBA", (1, 1)).save(blank, "PNG")
    path = tmp_path_factory.mktemp("art") / "blank.npz"
    data = np.frombuffer(blank.getvalue() * EMOJI, np.uint8)
    np.savez(path, data=data, offset=np.arange(EMOJI + 1) * len(blank.getvalue()))
    return sprites.Sprites(path)


@pytest.fixture(scope="module", params=["shapes", pytest.param("emoji", marks=needs_font)])
def art(request, shapes):
    return shapes if request.param == "shapes" else sprites.Sprites()


@pytest.fixture(scope="module")
def check(art):
    return checker.Checker(art)


@pytest.fixture(scope="module")
def entries(art):
    """Entries that `art` can draw, all categories with emoji and four of them without."""
    blank = art.base[0].size == (1, 1)
    chosen = [
        e for e in world.load() if not blank or all(t.sprite >= EMOJI for _, t in e.scene.objects)
    ]
    return chosen[: 60 if blank else 72]


def changed(entry, objects=None, background=None):
    """The entry's scene with other objects or another background."""
    scene = entry.scene
    return dataclasses.replace(
        scene, objects=objects or scene.objects, background=background or scene.background
    )


def verdicts(check, art, cases):
    """Verdicts of (entry, scene that is drawn instead)."""
    return [check(e, compose.compose(s, art, SIDE, SIDE)) for e, s in cases]


def share(outcomes, criterion):
    return np.mean([getattr(v, criterion) for v in outcomes])


def unused_color(scene):
    used = {*scene.background, *(t.color for _, t in scene.objects)}
    return next(c for c in ("red", "blue", "yellow", "green", "purple", "black") if c not in used)


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (160, 240), (384, 256)])
def test_ideal_pictures_pass(check, art, entries, size):
    for entry in entries[: None if size == (SIDE, SIDE) else 18]:
        verdict = check(entry, entry.ideal(art, *size))
        assert verdict.followed and verdict.clean, (entry.prompt, verdict.notes)
        assert verdict.objects == len(entry.scene.objects)


def test_shuffled_prompts_score_near_chance(check, art, entries):
    _, control = run.judge(check, entries, [e.ideal(art, SIDE, SIDE) for e in entries])
    assert share(control, "followed") == 0
    assert share(control, "identity") < 0.15
    assert share(control, "color") < 0.15


def test_derangement_moves_every_entry_within_its_category():
    entries = world.load(count=120)
    other = run.derangement(entries)
    assert sorted(other) == list(range(120))
    for i, o in enumerate(other):
        assert o != i
        assert entries[o].category == entries[i].category


def test_wrong_shape_color_fails_color_only(check, art, entries):
    cases = []
    for e in entries:
        (slot, thing), *rest = e.scene.objects
        if thing.color:
            other = dataclasses.replace(thing, color=unused_color(e.scene))
            cases.append((e, changed(e, [(slot, other), *rest])))
    outcomes = verdicts(check, art, cases)
    assert len(cases) > 20
    assert share(outcomes, "color") == 0
    for criterion in ("count", "place", "identity"):
        assert share(outcomes, criterion) > 0.95, criterion


def test_exchanged_colors_fail_color_only(check, art, entries):
    cases = []
    for e in entries:
        if e.category == "binding":
            (sa, a), (sb, b) = e.scene.objects
            a, b = (
                dataclasses.replace(a, color=b.color),
                dataclasses.replace(b, color=a.color),
            )
            cases.append((e, changed(e, [(sa, a), (sb, b)])))
    outcomes = verdicts(check, art, cases)
    assert len(cases) >= 12
    assert share(outcomes, "color") == 0
    assert min(share(outcomes, c) for c in ("count", "place", "identity")) > 0.95


def test_wrong_background_fails_color(check, art, entries):
    cases = [(e, changed(e, background=(unused_color(e.scene),))) for e in entries]
    assert share(verdicts(check, art, cases), "color") == 0
    upside_down = [
        (e, changed(e, background=e.scene.background[::-1]))
        for e in entries
        if len(e.scene.background) == 2
    ]
    assert upside_down
    assert share(verdicts(check, art, upside_down), "color") == 0


def test_moved_object_fails_place_not_count(check, art, entries):
    outcomes = []
    for e in entries:
        slots = {slot for slot, _ in e.scene.objects}
        if slots <= {"small", "normal"} and len(e.scene.background) == 1:
            picture = e.ideal(art, SIDE, SIDE)
            outcomes.append(check(e, np.roll(picture, int(0.1 * SIDE), len(outcomes) % 2)))
    assert len(outcomes) >= 10
    assert share(outcomes, "place") == 0
    assert share(outcomes, "count") > 0.9


def test_wrong_size_fails_place(check, art, entries):
    cases = [
        (e, changed(e, [("normal" if slot == "small" else "small", thing)]))
        for e in entries
        for slot, thing in e.scene.objects
        if slot in ("small", "normal", "big")
    ]
    assert share(verdicts(check, art, cases), "place") == 0


def test_swapped_objects_fail_place(check, art, entries):
    cases = []
    for e in entries:
        if len({t.sprite for _, t in e.scene.objects}) == 2:
            (sa, a), (sb, b) = e.scene.objects
            cases.append((e, changed(e, [(sa, b), (sb, a)])))
    outcomes = verdicts(check, art, cases)
    assert len(cases) >= 12
    assert share(outcomes, "place") == 0


def test_other_layout_fails_place(check, art, entries):
    turn = {"left": "top", "right": "bottom", "top": "left", "bottom": "right"}
    cases = [
        (e, changed(e, [(turn[slot], t) for slot, t in e.scene.objects]))
        for e in entries
        if len(e.scene.objects) == 2
    ]
    assert share(verdicts(check, art, cases), "place") == 0


@pytest.mark.parametrize("drawn", [1, 2, 3, 4])
def test_wrong_count_fails_count(check, art, entries, drawn):
    cases = []
    for e in entries:
        kinds = {t.sprite for _, t in e.scene.objects}
        if len(kinds) == 1 and len(e.scene.objects) != drawn:
            slots = scenes.LAYOUTS.get(drawn, ("normal",))
            thing = e.scene.objects[0][1]
            cases.append((e, changed(e, [(slot, thing) for slot in slots])))
    outcomes = verdicts(check, art, cases)
    assert len(cases) >= 5
    assert share(outcomes, "count") < 0.1  # yellow faces on yellow leave little to count
    assert share(outcomes, "followed") == 0


def test_missing_and_additional_object_fail_count(check, art, entries):
    missing, additional = [], []
    for e in entries:
        objects = e.scene.objects
        if len(objects) == 4:
            missing.append((e, changed(e, objects[:3])))
        if len(objects) == 2 and {s for s, _ in objects} == {"left", "right"}:
            small = ("small", objects[0][1])
            additional.append((e, changed(e, [*objects, small])))
    outcomes = verdicts(check, art, missing)
    assert share(outcomes, "count") == 0
    assert {v.objects for v in outcomes} <= {3}
    assert share(verdicts(check, art, additional), "count") < 0.1


def test_other_sprite_fails_identity(check, art, entries):
    cases = []
    for n, e in enumerate(entries):
        (slot, thing), *rest = e.scene.objects
        first, count = (0, EMOJI) if thing.sprite < EMOJI else (EMOJI, len(words.SHAPE_NAMES))
        sprite = first + (thing.sprite - first + 1 + n % 7) % count
        other = dataclasses.replace(thing, sprite=sprite)
        cases.append((e, changed(e, [(slot, other), *rest])))
    outcomes = verdicts(check, art, cases)
    assert share(outcomes, "identity") == 0


def test_noise_and_blur_fail_clean(check, art, entries):
    rng = np.random.default_rng(1)
    noisy, blurred = [], []
    for e in entries[:36]:
        ideal = e.ideal(art, SIDE, SIDE)
        noise = rng.normal(0, 40, ideal.shape)  # 16 to 19 dB after clipping
        noisy.append(check(e, np.clip(ideal + noise, 0, 255).astype(np.uint8)))
        if e.scene.objects[0][0] != "small":  # most of such a picture is background
            soft = Image.fromarray(ideal).filter(ImageFilter.GaussianBlur(SIDE / 8))
            blurred.append(check(e, np.array(soft)))
    assert share(noisy, "clean") == 0
    assert share(noisy, "identity") > 0.9
    assert share(blurred, "clean") < 0.2
    assert share(blurred, "followed") < 0.1


def test_empty_picture_fails(check, art, entries):
    outcomes = verdicts(
        check, art, [(e, dataclasses.replace(e.scene, objects=[])) for e in entries]
    )
    assert share(outcomes, "followed") == 0
    assert share(outcomes, "identity") < 0.1  # what is nearest to nothing is up to chance


def test_prompt_list_is_held_out_and_complete():
    entries = world.load()
    assert len(entries) >= 500
    assert {e.category for e in entries} == set(world.CATEGORIES)
    assert {e.category for e in entries[:6]} == set(world.CATEGORIES)
    captions = {scenes.normalise(e.prompt) for e in entries}
    assert len(captions) == len({e.id for e in entries}) == len(entries)
    assert all(scenes.held_out(e.prompt) for e in entries)
    names = world.sprite_names()
    assert len(set(names)) == len(names)
