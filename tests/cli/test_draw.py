# SPDX-License-Identifier: Apache-2.0
"""Drawing: files, names, seeds, metadata, repeating."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import stat
import subprocess

import numpy as np
import pytest
from PIL import Image, PngImagePlugin


def metadata(path) -> dict[str, str]:
    with Image.open(path) as image:
        lines = image.info["bonsai"].splitlines()
    return dict(line.split(": ", 1) for line in lines)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_picture_and_its_metadata(cli):
    options = ["-o", "out.png", "--seed", "42", "--size", "96x64", "--steps", "2"]
    result = cli.draw("-p", "a red apple", *options)
    assert result.out == "out.png\n"
    assert pixels(cli.folder / "out.png").shape == (64, 96, 3)
    found = metadata(cli.folder / "out.png")
    assert found["prompt"] == "a red apple"
    assert (found["seed"], found["size"], found["steps"]) == ("42", "96x64", "2")
    assert len(found["model_hash"]) == 64 and found["engine"].startswith("bonsai ")
    assert stat.S_IMODE((cli.folder / "out.png").stat().st_mode) & 0o400


def test_default_name_speaks_and_never_overwrites(cli):
    names = [cli.draw("-p", "A red APPLE, on blue!", "--seed", "7").out for _ in range(3)]
    stem = "a-red-apple-on-blue-7"
    assert names == [f"{stem}.png\n", f"{stem}-2.png\n", f"{stem}-3.png\n"]
    assert cli.files() == sorted(name.strip() for name in names)


@pytest.mark.parametrize(
    "prompt, name",
    [
        ("", "untitled-1.png"),
        ("../../etc/passwd", "etc-passwd-1.png"),
        ("-rf .", "rf-1.png"),
        ("雪の中の盆栽、静か", "雪の中の盆栽-静か-1.png"),
        ("word " * 100, None),
    ],
)
def test_names_of_odd_prompts(cli, prompt, name):
    out = cli.draw(f"--prompt={prompt}", "--seed=1").out.strip()
    assert cli.files() == [out]
    assert out == name if name else len(out) < 70


def test_output_folder_and_replacing(cli):
    (cli.folder / "sub").mkdir()
    out = cli.draw("-p", "x", "-s", "1", "-o", "sub").out
    assert out.replace("\\", "/") == "sub/x-1.png\n"
    (cli.folder / "old.png").write_bytes(b"old")
    cli.draw("-p", "x", "-s", "1", "-o", "old.png")
    assert pixels(cli.folder / "old.png").shape == (64, 64, 3)
    assert cli.files() == ["old.png", "sub"]


def test_standard_output(cli):
    result = cli.draw("-p", "x", "-s", "5", "-o", "-")
    with Image.open(io.BytesIO(result.raw)) as image:
        assert image.size == (64, 64)
    assert cli.files() == []


def test_random_seed_is_printed_and_repeats(cli):
    first = cli.draw("-p", "x", "-q", "-o", "a.png")
    assert first.err.startswith("seed ") and first.err.count("\n") == 1
    cli.draw("-p", "x", "-o", "b.png", "--seed", first.err.split()[1])
    assert (cli.folder / "a.png").read_bytes() == (cli.folder / "b.png").read_bytes()
    second = cli.draw("-p", "x", "-o", "c.png")
    assert second.err.splitlines()[0].startswith("seed ")
    assert second.err.splitlines()[0] != first.err.strip()


def test_quiet_is_silent(cli):
    assert cli.draw("-p", "x", "-q", "-s", "1", "-o", "a.png").err == ""


def test_several_images(cli):
    top = 2**64 - 1
    result = cli.draw("-p", "x", "-n", "3", "--seed", str(top), "-o", "a.png")
    assert result.out.split() == [f"a-{top}.png", "a-0.png", "a-1.png"]
    cli.draw("-p", "x", "--seed", "0", "-o", "single.png")
    assert np.array_equal(pixels(cli.folder / "a-0.png"), pixels(cli.folder / "single.png"))
    assert not np.array_equal(pixels(cli.folder / "a-1.png"), pixels(cli.folder / "single.png"))
    assert metadata(cli.folder / f"a-{top}.png")["seed"] == str(top)


def test_json(cli):
    result = cli.draw("-p", 'say "ü"\n', "-n", "2", "--seed", "3", "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["seed"] for line in lines] == [3, 4]
    for line in lines:
        assert (line["width"], line["height"]) == (64, 64)
        assert line["prompt"] == 'say "ü"\n'
        assert set(line["seconds"]) == {"text_encoder", "denoise", "vae", "total"}
        assert line["seconds"]["total"] > 0
        assert set(line["peak_bytes"]) == {"text_encoder", "denoise", "vae"}
        assert line["prompt_truncated"] is False and line["prompt_tokens"] > 0
        assert line["metadata"]["prompt"] == 'say "ü"\n'
        assert (cli.folder / line["path"]).is_file()


def test_prompt_from_standard_input(cli):
    cli.draw("-p", "-", "-s", "1", "-o", "a.png", stdin="zwei\nZeilen \\ ä\n".encode())
    assert metadata(cli.folder / "a.png")["prompt"] == "zwei\\nZeilen \\\\ ä"


def test_prompt_over_the_limit_is_warned_about(cli):
    result = cli.draw("-p", "-", "-s", "1", "--json", stdin=b"apple " * 2000)
    assert "warning: " in result.err and "512" in result.err
    assert json.loads(result.out)["prompt_truncated"] is True


def test_guidance_is_ignored_by_distilled_models(cli):
    result = cli.draw("-p", "x", "-s", "1", "--guidance", "4", "-o", "a.png")
    assert "warning: " in result.err and "guidance" in result.err
    cli.draw("-p", "x", "-s", "1", "-o", "b.png")
    assert np.array_equal(pixels(cli.folder / "a.png"), pixels(cli.folder / "b.png"))


# Each draws another picture than the plain command, and --from must know that.
SETTINGS = [
    [],
    ["--shift", "1.5"],
    ["--noise-dtype", "bf16"],
    ["--timestep-dtype", "bf16"],
    ["--precision", "exact"],
    ["--size", "96x48", "--steps", "3"],
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s[0] if s else "plain")
def test_from_repeats_exactly(cli, settings):
    prompt = "two\nlines \\n and 盆栽"
    base = ["--size", "64x64", "--steps", "2"]
    cli.draw("-p", prompt, "-s", "9", "-o", "a.png", *base, *settings)
    result = cli.draw("--from", "a.png", "-o", "b.png")
    assert "warning" not in result.err
    assert (cli.folder / "a.png").read_bytes() == (cli.folder / "b.png").read_bytes()
    if settings:
        cli.draw("-p", prompt, "-s", "9", "-o", "plain.png", *base)
        plain = (cli.folder / "plain.png").read_bytes()
        assert plain != (cli.folder / "a.png").read_bytes()


def test_from_with_other_options(cli):
    cli.draw("-p", "x", "-s", "9", "-o", "a.png")
    cli.draw("--from", "a.png", "-s", "10", "-p", "y", "-o", "b.png")
    found = metadata(cli.folder / "b.png")
    assert (found["prompt"], found["seed"], found["size"]) == ("y", "10", "64x64")


def save_with(path, text: str | None) -> None:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt("bonsai", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def test_from_keeps_the_side_that_is_not_given(cli):
    cli.draw("-p", "x", "-s", "1", "--size", "96x48", "--steps", "1", "-o", "a.png")
    cli.draw("--from", "a.png", "-W", "32", "-o", "b.png")
    assert pixels(cli.folder / "b.png").shape == (48, 32, 3)


def test_from_a_prompt_that_looks_like_an_option(cli):
    """- is the prompt of the picture then, not a request to read one."""
    for prompt in (b"-", b"--help"):
        cli.draw("-p", "-", "-s", "1", "-o", "a.png", stdin=prompt)
        cli.draw("--from", "a.png", "-o", "b.png", stdin=b"another prompt")
        assert (cli.folder / "a.png").read_bytes() == (cli.folder / "b.png").read_bytes()


@pytest.mark.posix
def test_from_a_pipe(cli):
    os.mkfifo(cli.folder / "pipe")
    result = cli("--from", "pipe", timeout=20)
    assert result.code == 3 and "not a regular file" in result.err


@pytest.mark.posix
def test_pictures_into_a_pipe(cli):
    """All into the one that was named, however many, and no files beside it."""
    os.mkfifo(cli.folder / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], cwd=cli.folder, stdout=subprocess.PIPE)
    writer = os.open(cli.folder / "pipe", os.O_WRONLY)  # cat ends when all writers have
    result = cli.draw("-p", "x", "-s", "1", "-n", "2", "-o", "pipe")
    os.close(writer)
    written, _ = reader.communicate(timeout=60)
    assert result.out == "pipe\npipe\n" and cli.files() == ["pipe"]
    assert written.count(b"\x89PNG") == 2


def test_from_another_model_is_a_warning(cli):
    text = "prompt: x\nseed: 1\nsize: 64x64\nsteps: 1\nmodel_hash: " + "0" * 64 + "\n"
    save_with(cli.folder / "a.png", text)
    result = cli.draw("--from", "a.png", "-o", "b.png")
    assert "warning: a.png was drawn with another model" in result.err


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no bonsai metadata"),
        ("seed: 1\n", "no prompt"),
        ("prompt: x\nseed: 1\nsize: 1e9x4\n", "a.png: size"),
        ("prompt: x\nseed: one\n", "a.png: seed"),
        ("prompt: x\nseed: 1\nprecision: best\n", "a.png: precision"),
        ("prompt: x\nseed: \x1b]0;title\x07\x9b31m\n", "a.png: seed ?]0;title??31m"),
    ],
)
def test_from_bad_pictures(cli, text, message):
    save_with(cli.folder / "a.png", text)
    result = cli("--from", "a.png", "-o", "b.png")
    assert result.code == 3 and message in result.err, result
    assert cli.files() == ["a.png"]


def test_unwritable_output_is_found_before_drawing(cli):
    # At this size drawing would take far longer than the time allowed.
    result = cli("-p", "x", "--steps", "1000", "-o", "no/such/folder/a.png", timeout=10)
    assert result.code == 1 and "folder" in result.err, result
    assert cli.files() == []


@pytest.mark.posix
def test_full_disk(cli):
    result = cli("-p", "x", "-s", "1", "--size", "64x64", "--steps", "1", "-o", "/dev/full")
    assert result.code == 1 and "free some space" in result.err, result
    assert cli.files() == []


@pytest.mark.posix
def test_failed_write_leaves_nothing_and_keeps_the_old_file(cli):
    def small_files_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    (cli.folder / "old.png").write_bytes(b"old")
    base = ["-p", "x", "-s", "1", "--size", "64x64", "--steps", "1"]
    for output in (["-o", "old.png"], ["-o", "new.png"], []):
        result = cli(*base, *output, preexec_fn=small_files_only)
        assert result.code == 1 and "cannot write" in result.err, result
        assert result.out == ""
    assert cli.files() == ["old.png"]
    assert (cli.folder / "old.png").read_bytes() == b"old"


def test_not_enough_memory(cli):
    result = cli("-p", "x", "--max-memory", "1M", "--size", "64x64")
    assert result.code == 4 and "smaller picture" in result.err, result
    assert "does not fit" in result.err and "\nvae " in result.err, "the plan"
    assert "does not fit" not in cli("-q", "-p", "x", "--max-memory", "1M").err
    assert cli.files() == []


def test_precisions_differ_and_threads_do_not(cli):
    for name, options in {
        "fast": [],
        "exact": ["--precision", "exact"],
        "one": ["-t", "1"],
        "two": ["-t", "2"],
    }.items():
        cli.draw("-p", "x", "-s", "1", "-o", f"{name}.png", *options)
    read = {name: pixels(cli.folder / f"{name}.png") for name in ("fast", "exact", "one", "two")}
    assert np.array_equal(read["one"], read["two"]) and np.array_equal(read["one"], read["fast"])
    assert not np.array_equal(read["fast"], read["exact"])


def test_embeds(cli):
    cli.draw("-p", "ein Bär", "--save-embeds", "bear.gguf", "--seed", "1", "-o", "first.png")
    again = cli.draw("--load-embeds", "bear.gguf", "--seed", "1", "--json", "-o", "again.png")
    assert (cli.folder / "first.png").read_bytes() == (cli.folder / "again.png").read_bytes()
    assert json.loads(again.out)["prompt"] == "ein Bär"
    assert cli("verify", "bear.gguf").code == 0
    assert "an encoded prompt" in cli("info", "bear.gguf").out
    other = cli.draw("--from", "first.png", "--load-embeds", "bear.gguf", "-o", "other.png")
    assert other.code == 0 and metadata(cli.folder / "other.png")["prompt"] == "ein Bär"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--load-embeds", "x", "-p", "y"], 2, "leave --prompt out"),
        (["--load-embeds", "x", "--save-embeds", "y"], 2, "exclude each other"),
        (["--load-embeds", "missing.gguf"], 3, "missing.gguf"),
        (["-p", "x", "--save-embeds", "no/such/folder"], 1, "no/such/folder"),
    ],
)
def test_embeds_refused(cli, arguments, code, words):
    result = cli(*arguments, "-o", "out.png")
    assert result.code == code and words in result.err and cli.files() == []


def test_embeds_of_another_model(cli, converted):
    cli.draw("-p", "x", "--save-embeds", "x.gguf", "-o", "x.png")
    result = cli("-p", "x", "-m", "x.gguf")
    assert result.code == 3 and "--load-embeds takes" in result.err
    result = cli("-m", converted("tiny", weights="binary"), "--load-embeds", "x.gguf")
    assert result.code == 3 and "of another model" in result.err
    result = cli("--load-embeds", cli.model)
    assert result.code == 3 and "expected prompt embeddings" in result.err
