# SPDX-License-Identifier: Apache-2.0
"""info, verify, --dry-run and --list-devices."""

from __future__ import annotations

import json

from support import hostile_gguf


def test_info(cli):
    text = cli("info", cli.model)
    assert text.code == 0 and "ternary" in text.out and text.err == ""
    assert cli("info").out == text.out, "the default model"
    data = json.loads(cli("info", "--json").out)
    assert isinstance(data, dict) and data


def test_verify(cli):
    result = cli("verify", cli.model)
    assert result.code == 0 and "match" in result.out
    assert json.loads(cli("verify", "--json").out)["ok"] is True


def test_verify_finds_one_wrong_bit(cli):
    data = bytearray(cli.model.read_bytes())
    data[-100] ^= 1
    damaged = cli.folder / "damaged.gguf"
    damaged.write_bytes(data)
    result = cli("verify", damaged)
    assert result.code == 3 and "damaged.gguf" in result.err
    assert any(f"{part}." in result.err for part in ("dit", "te", "vae")), "names the tensor"


def test_dry_run(cli):
    result = cli("--dry-run", "--size", "512x512")
    assert result.code == 0 and cli.files() == []
    for stage in ("text encoder", "denoise", "vae"):
        assert stage in result.out
    assert "fits" in result.out
    plan = json.loads(cli("--dry-run", "--size", "512x512", "--json").out)
    assert [s["stage"] for s in plan["stages"]] == ["text encoder", "denoise", "vae"]
    assert plan["fits"] is True and 0 < plan["peak"] <= plan["limit"]
    larger = json.loads(cli("--dry-run", "--size", "1024x1024", "--json").out)
    assert larger["peak"] > plan["peak"]
    small = ["--dry-run", "--size", "16x16", "--json", "--steps"]
    one, many = (json.loads(cli(*small, steps).out)["stages"][1] for steps in ("1", "1000"))
    assert one["stage"] == "denoise" and many["activations"] > one["activations"]


def test_dry_run_that_does_not_fit(cli):
    result = cli("--dry-run", "--max-memory", "1M")
    assert result.code == 4 and "does not fit" in result.out
    assert "--max-memory" in result.err


def test_list_devices(cli):
    text = cli("--list-devices")
    assert text.code == 0 and "cpu" in text.out
    devices = [json.loads(line) for line in cli("--list-devices", "--json").out.splitlines()]
    assert devices[0]["id"] == "cpu" and devices[0]["memory_total"] > 0
    assert devices[0]["threads"] >= 1


def test_files_of_other_programs(cli):
    """Told what they are, what they lack and which command makes a model of them."""
    names = ["double_stream_modulation_img.lin.weight", "double_blocks.0.img_mlp.0.weight"]
    records = [hostile_gguf.record(n, (256, 1), 10, 96 * i) for i, n in enumerate(names)]
    path = cli.folder / "klein it's.gguf"
    path.write_bytes(hostile_gguf.gguf(records=records, data=bytes(192)))
    command = (
        "bonsai-convert --transformer 'klein it'\\''s.gguf' --text-encoder QWEN3-4B "
        "--vae FLUX2-VAE -o model.gguf"
    )
    text = cli("info", path.name)
    assert text.code == 0 and command in text.out and "Q2_K cannot hold ternary" in text.out
    data = json.loads(cli("info", path.name, "--json").out)
    assert data["command"] == command and data["runnable"] is False and len(data["notes"]) == 1
    assert data["missing"] == ["a Qwen3 text encoder", "a FLUX.2 VAE", "the tokenizer"]
    drawn = cli("-m", path.name, "-p", "x")
    assert drawn.code == 3 and command in drawn.err
    verified = cli("verify", path.name)
    assert verified.code == 3 and "no hashes" in verified.err


def test_info_of_a_whole_model_says_so(cli):
    data = json.loads(cli("info", "--json").out)
    assert data["runnable"] is True and data["missing"] == [] and data["command"] is None
