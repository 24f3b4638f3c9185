# SPDX-License-Identifier: Apache-2.0
"""Engine: drawing, encoding, errors."""

from __future__ import annotations

import logging

import bonsai
import numpy as np
import pytest
from bonsai import Engine
from PIL import Image

SMALL = {"width": 64, "height": 64, "steps": 2}


def test_picture(shared_engine):
    picture = shared_engine.generate("a red apple", width=96, height=64, steps=1, seed=1)
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.size) == ("RGB", (96, 64))
    assert "prompt: a red apple\n" in picture.info["bonsai"]


def test_self_test():
    report = bonsai.self_test(threads=1)
    assert report["failures"] == 0 and len(report["checks"]) > 50
    assert report["tested"]["threads"] == 1
    with pytest.raises(bonsai.ArgumentError, match="abacus"):
        bonsai.self_test(device="abacus:0")


def test_several_pictures_count_seeds_up(shared_engine):
    pictures = shared_engine.generate("x", seed=2**64 - 1, n=2, **SMALL)
    assert [type(p) for p in pictures] == [Image.Image] * 2
    single = shared_engine.generate("x", seed=0, **SMALL)
    assert np.array_equal(np.asarray(pictures[1]), np.asarray(single))
    assert not np.array_equal(np.asarray(pictures[0]), np.asarray(single))


def test_seed_is_random_and_recorded(shared_engine):
    first, second = (shared_engine.generate("x", **SMALL).info["bonsai"] for _ in range(2))
    assert "seed: " in first and first != second


def test_metadata_survives_saving(shared_engine, tmp_path):
    picture = shared_engine.generate("zwei\nZeilen 盆栽", seed=3, **SMALL)
    picture.save(tmp_path / "a.png", pnginfo=bonsai.pnginfo(picture))
    assert bonsai.read_metadata(tmp_path / "a.png") == picture.info["bonsai"]
    with Image.open(tmp_path / "a.png") as again:
        assert again.info["bonsai"] == picture.info["bonsai"]
    picture.save(tmp_path / "bare.png")
    with pytest.raises(bonsai.ModelError, match="metadata"):
        bonsai.read_metadata(tmp_path / "bare.png")


def test_settings_change_the_picture(shared_engine):
    plain = np.asarray(shared_engine.generate("x", seed=3, **SMALL))
    for settings in ({"shift": 1.5}, {"noise_dtype": "bf16"}, {"timestep_dtype": "bf16"}):
        other = np.asarray(shared_engine.generate("x", seed=3, **SMALL, **settings))
        assert not np.array_equal(plain, other), settings


def test_guidance_of_an_undistilled_model(converted):
    with Engine(converted("odd", weights="dense", seed=2)) as engine:
        assert not engine.info.distilled
        a, b = (engine.generate("x", 64, 64, 1, 1, guidance=g) for g in (1.0, 5.0))
        assert not np.array_equal(np.asarray(a), np.asarray(b))
        size = engine.generate("x", steps=1, seed=1).size
        assert size == (engine.info.default_width, engine.info.default_height) == (96, 80)


def test_info(shared_engine, model):
    info = shared_engine.info
    assert info.variant == "ternary" and info.distilled is True and info.device == "cpu"
    assert info.size_multiple == 16 and info.max_tokens == 512
    assert info.file_bytes == model.stat().st_size and len(info.hash) == 64
    parts = info.transformer_bytes + info.text_encoder_bytes + info.vae_bytes
    assert 0 < parts <= info.file_bytes
    assert "ternary" in repr(shared_engine)


def test_encode_prompt(shared_engine):
    a, b = shared_engine.encode_prompt("an apple"), shared_engine.encode_prompt("a pear")
    assert a.shape == (shared_engine.info.max_tokens, shared_engine.info.prompt_width)
    assert a.dtype == np.float32 and np.isfinite(a).all() and not np.array_equal(a, b)
    assert np.array_equal(a, shared_engine.encode_prompt("an apple"))


def test_embeds(shared_engine, model, tmp_path):
    path = tmp_path / "apple.gguf"
    shared_engine.save_embeds("ein Apfel 🍎", path)
    with Engine(model) as engine:
        assert engine.load_embeds(path) == "ein Apfel 🍎"
        loaded = engine.generate("ein Apfel 🍎", seed=3, **SMALL)
    drawn = shared_engine.generate("ein Apfel 🍎", seed=3, **SMALL)
    assert np.array_equal(np.asarray(loaded), np.asarray(drawn))
    with pytest.raises(bonsai.ModelError, match="expected prompt embeddings"):
        shared_engine.load_embeds(model)
    with pytest.raises(bonsai.FileError):
        shared_engine.load_embeds(tmp_path / "missing.gguf")


def test_tokenize(shared_engine):
    empty, text = shared_engine.tokenize(""), shared_engine.tokenize("an apple")
    assert 0 < len(empty) < len(text) and all(isinstance(i, int) for i in text)
    assert len(shared_engine.tokenize("apple " * 2000)) == shared_engine.info.max_tokens


def test_long_prompt_is_logged(shared_engine, caplog):
    with caplog.at_level(logging.WARNING, logger="bonsai"):
        shared_engine.generate("apple " * 2000, seed=1, **SMALL)
    assert any("512" in record.message for record in caplog.records)


def test_progress_and_callback(shared_engine):
    reports, steps = [], []
    shared_engine.generate(
        "not encoded before",
        seed=1,
        n=2,
        progress=reports.append,
        callback=steps.append,
        preview_every=2,
        **SMALL,
    )
    assert [r.stage for r in reports if r.fraction == 1][-1] == "vae"
    assert {r.stage for r in reports} == set(("text encoder", "denoise", "vae"))
    assert all(0 <= r.fraction <= 1 and r.images == 2 for r in reports)
    assert [(s.image_index, s.step) for s in steps] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [s.image is not None for s in steps] == [False, True, False, True]
    assert steps[0].latents.shape[:2] == (4, 4) and steps[1].sigma == 0
    assert not np.array_equal(steps[0].latents, steps[1].latents), "copies"


def test_stream(shared_engine):
    steps = list(shared_engine.stream("x", seed=1, width=64, height=64, steps=3))
    assert [s.step for s in steps] == [1, 2, 3]
    assert [s.done for s in steps] == [False, False, True]
    assert steps[0].image is None
    whole = shared_engine.generate("x", seed=1, width=64, height=64, steps=3)
    assert np.array_equal(np.asarray(steps[-1].image), np.asarray(whole))
    assert steps[0].sigma > steps[1].sigma > steps[2].sigma == 0


WRONG = {
    "width 0": {"width": 0},
    "width odd": {"width": 100},
    "width text": {"width": "64"},
    "width huge": {"width": 10**12},
    "steps": {"steps": 0},
    "steps float": {"steps": 1.5},
    "seed": {"seed": -1},
    "seed above 64 bits": {"seed": 2**64},
    "n": {"n": 0},
    "noise_dtype": {"noise_dtype": "f64"},
    "shift": {"shift": float("nan")},
    "guidance": {"guidance": float("nan")},
    "guidance in words": {"guidance": "7"},
    "a float as width": {"width": 64.0},
    "more pictures than one call draws": {"n": 4097},
    "no function for progress": {"progress": "yes"},
    "no function for steps": {"callback": 1},
}


@pytest.mark.parametrize("settings", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments(shared_engine, settings):
    with pytest.raises(bonsai.ArgumentError) as error:
        shared_engine.generate("x", **{"width": 64, "height": 64, "steps": 1, **settings})
    assert isinstance(error.value, ValueError) and str(error.value)


def test_wrong_prompts(shared_engine):
    with pytest.raises(bonsai.ArgumentError, match="zero character"):
        shared_engine.generate("a\0b", **SMALL)
    with pytest.raises(bonsai.ArgumentError, match="UTF-8"):
        shared_engine.generate("a\ud800b", **SMALL)
    for prompt in (None, 3, ["a", "b"]):
        with pytest.raises(bonsai.ArgumentError, match="^prompt=.*expected text"):
            shared_engine.generate(prompt, **SMALL)


def test_numbers_of_numpy(shared_engine):
    plain = shared_engine.generate("x", seed=7, guidance=1.0, **SMALL)
    sizes = {name: np.int32(value) for name, value in SMALL.items()}
    same = shared_engine.generate("x", seed=np.uint64(7), guidance=np.float32(1), **sizes)
    assert np.array_equal(np.asarray(plain), np.asarray(same))


def test_wrong_engines(model, tmp_path):
    (tmp_path / "text.gguf").write_text("no model " * 100)
    with pytest.raises(bonsai.ModelError, match="text.gguf"):
        Engine(tmp_path / "text.gguf")
    with pytest.raises(bonsai.FileError, match="none.gguf") as error:
        Engine(tmp_path / "none.gguf")
    assert isinstance(error.value, OSError)
    with pytest.raises(bonsai.BonsaiError, match="cuda:7"):
        Engine(model, device="cuda:7")
    with pytest.raises(bonsai.ArgumentError, match="fast"):
        Engine(model, precision="best")
    with pytest.raises(bonsai.ArgumentError, match="hub:owner/name"):
        Engine("")  # not the demo model


def test_which_model(model, monkeypatch, caplog):
    monkeypatch.setenv("BONSAI_MODEL", str(model))
    with Engine(model) as named, Engine() as found:
        assert found.info == named.info
    assert not caplog.records
    monkeypatch.delenv("BONSAI_MODEL")
    with Engine() as engine:  # what comes with the package
        picture = engine.generate("a red circle on a blue background", seed=1)
    assert len(caplog.records) == 1 and "demo model" in caplog.text
    assert "bonsai-convert" in caplog.text
    middle, corner = np.asarray(picture)[128, 128], np.asarray(picture)[8, 8]
    assert picture.size == (256, 256)
    assert np.abs(middle - np.array((220, 40, 40))).max() < 30, middle
    assert np.abs(corner - np.array((45, 95, 220))).max() < 30, corner
    monkeypatch.setattr(bonsai.library, "_installed_models", lambda: iter(()))
    with pytest.raises(bonsai.ArgumentError, match="BONSAI_MODEL"):
        Engine()


def test_out_of_memory(model):
    with Engine(model, max_memory=1 << 20) as engine:
        with pytest.raises(bonsai.OutOfMemory) as error:
            engine.generate("x", **SMALL)
        assert isinstance(error.value, MemoryError)


def test_exact_and_threads(model):
    with Engine(model, threads=1) as one, Engine(model, precision="exact") as exact:
        fast = np.asarray(one.generate("x", seed=1, **SMALL))
        assert not np.array_equal(fast, np.asarray(exact.generate("x", seed=1, **SMALL)))


def test_library_functions(model, tmp_path):
    assert bonsai.devices()[0].id == "cpu"
    assert bonsai.noise(1, 64).std() == pytest.approx(1, abs=0.4)
    assert not np.array_equal(bonsai.noise(1, 64), bonsai.noise(2, 64))
    with pytest.raises(bonsai.ArgumentError):
        bonsai.noise(1, 3)
    with pytest.raises(bonsai.ArgumentError, match="seed=1.5"):
        bonsai.noise(1.5, 16)
    assert bonsai.describe(model)
    bonsai.verify(model)
    data = bytearray(model.read_bytes())
    data[-100] ^= 1
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(bonsai.ModelError, match="bad.gguf"):
        bonsai.verify(tmp_path / "bad.gguf")
