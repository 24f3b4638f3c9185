# SPDX-License-Identifier: Apache-2.0
"""Whole conversions through the command line: what is stored, what is refused, what is left."""

import json

import minimal
import numpy as np
import pytest
from bonsai_convert import blocks, cli, gguf, stream
from minimal import WEIGHTS, edit_json, edit_weights, read_safetensors

TO_Q = "transformer_blocks.0.attn.to_q.weight"
LOW_BIT_TYPE = {"ternary": "PTQ1_0", "binary": "Q1_0"}


def convert(*args):
    """Exit code of a run in this process."""
    try:
        return cli.main([str(a) for a in args])
    except SystemExit as e:  # argparse
        return e.code


def fails(capsys, *args, code=1):
    """The error text of a run that must fail, after checking that it is one message."""
    assert convert(*args) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def tensor_bytes(reader, name):
    t = reader.tensors[name]
    return np.fromfile(reader.path, np.uint8, t.nbytes, offset=t.offset)


def values(dtype, data):
    """float32 values of safetensors bytes."""
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def expected_names(root):
    """Source (part, name) -> name in the model file, from the rules of FORMAT.md."""
    text = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    names = {}
    for part, path in WEIGHTS.items():
        for name in read_safetensors(root / path):
            if part == "transformer":
                names[part, name] = f"dit.{name}"
            elif part == "vae" and "num_batches" not in name:
                names[part, name] = f"vae.{name}"
            elif name == "model.embed_tokens.weight":
                names[part, name] = "te.token_embd.weight"
            elif name.startswith(("model.layers.0.", "model.layers.1.")):
                i, inner = name[len("model.layers.") :].split(".", 1)
                names[part, name] = f"te.blk.{i}.{text[inner[: -len('.weight')]]}.weight"
    return names


def test_lossless_by_default(any_checkpoint, tmp_path, capsys):
    kind, root = any_checkpoint
    out = tmp_path / "m.gguf"
    assert convert(root, "-o", out) == 0
    reader = gguf.Reader(out)
    names = expected_names(root)
    assert sorted(reader.tensors) == sorted(names.values())
    assert reader.keys["bonsai.variant"] == kind
    packed = 0
    for (part, source), name in names.items():
        dtype, data, shape = read_safetensors(root / WEIGHTS[part])[source]
        stored = reader.tensors[name]
        want = values(dtype, data).reshape(shape)
        if len(shape) == 4:  # stored with the input channels last
            want = want.transpose(0, 2, 3, 1)
        if "transformer_blocks" in source and len(shape) == 2 and kind != "dense":
            assert stored.type.name == LOW_BIT_TYPE[kind]
            got = blocks.dequantize(
                stored.type.name, tensor_bytes(reader, name).reshape(-1, stored.type.bytes)
            )
            packed += 1
        else:
            assert stored.type.name == dtype
            got = values(dtype, tensor_bytes(reader, name))
        assert np.array_equal(got.reshape(-1), want.reshape(-1)), name
        if len(shape) == 4 and shape[2:] == (1, 1):
            assert stored.shape == shape[:2]
        elif len(shape) == 4:
            assert stored.shape == (shape[0], shape[2], shape[3], shape[1])
        else:
            assert stored.shape == shape
    assert packed == (0 if kind == "dense" else 14)
    assert convert(root, "--verify", out) == 0
    assert f"verified against {root}" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_required_keys(checkpoint, tmp_path):
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\nlicense_link: L\n---\n")
    out = tmp_path / "m.gguf"
    assert convert(checkpoint, "-o", out, "--name", "Tännchen") == 0
    keys = gguf.Reader(out).keys
    assert keys["general.architecture"] == "bonsai"
    assert keys["general.name"] == "Tännchen"
    assert keys["general.license"] == "apache-2.0"
    assert keys["general.license.link"] == "L"
    assert keys["general.source.repo_url"] == "checkpoint"
    assert (keys["bonsai.format_version"], keys["general.quantization_version"]) == (1, 2)
    assert keys["bonsai.converter"] == f"convert.py {cli.version()}"
    assert len(keys[gguf.HASH_KEY]) == len(gguf.Reader(out).tensors)


def test_same_source_gives_the_same_bytes(checkpoint, tmp_path):
    for name in ("a", "b"):
        assert convert(checkpoint, "-o", tmp_path / name, "--compact") == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def types_of(path):
    return {n: t.type.name for n, t in gguf.Reader(path).tensors.items()}


def test_compact(checkpoint, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert convert(checkpoint, "-o", out, "--compact") == 0
    types = types_of(out)
    assert types["te.blk.0.attn_q.weight"] == "Q4_0"
    assert types["te.token_embd.weight"] == "Q8_0"
    assert types["te.blk.0.attn_norm.weight"] == "BF16"
    assert types["dit.context_embedder.weight"] == "Q8_0"
    assert types["dit.x_embedder.weight"] == types["dit.proj_out.weight"] == "F16"
    assert types["dit." + TO_Q] == "PTQ1_0"
    assert types["vae.decoder.conv_in.weight"] == "F16"
    assert types["vae.decoder.conv_in.bias"] == "BF16"
    assert types["vae.bn.running_var"] == "F32"
    capsys.readouterr()
    assert convert(checkpoint, "--verify", out) == 0
    report = capsys.readouterr().out
    assert "14 tensors decode to the source's numbers exactly" in report
    assert "as Q4_0: relative L2 error" in report


def test_explicit_choices_override_compact(checkpoint, tmp_path):
    out = tmp_path / "m.gguf"
    assert convert(checkpoint, "-o", out, "--compact", "--aux", "keep", "--text-encoder", "q8") == 0
    types = types_of(out)
    assert types["te.blk.0.attn_q.weight"] == types["te.token_embd.weight"] == "Q8_0"
    assert types["dit.context_embedder.weight"] == "F16"


@pytest.mark.parametrize("option, value, name, kind", [
    ("--text-encoder", "f16", "te.blk.1.ffn_up.weight", "F16"),
    ("--text-encoder", "bf16", "te.blk.1.ffn_up.weight", "BF16"),
    ("--aux", "f16", "dit.norm_out.linear.weight", "F16"),
    ("--weights", "f16", "dit." + TO_Q, "F16"),
    ("--weights", "q8", "dit." + TO_Q, "Q8_0"),
    ("--weights", "ternary", "dit." + TO_Q, "PTQ1_0"),
    ("--weights", "binary", "dit." + TO_Q, "Q1_0"),
])  # fmt: skip
def test_single_choices_on_a_dense_source(dense_checkpoint, tmp_path, option, value, name, kind):
    out = tmp_path / "m.gguf"
    assert convert(dense_checkpoint, "-o", out, option, value) == 0
    assert types_of(out)[name] == kind
    assert convert(dense_checkpoint, "--verify", out) == 0
    variant = value if value in ("ternary", "binary") else "dense"
    assert gguf.Reader(out).keys["bonsai.variant"] == variant


def test_packing_choice_changes_bytes_not_numbers(checkpoint, tmp_path):
    out = tmp_path / "m.gguf"
    assert convert(checkpoint, "-o", out, "--packing", "pq2_0") == 0
    assert types_of(out)["dit." + TO_Q] == "PQ2_0"
    assert convert(checkpoint, "--verify", out) == 0


def test_encoder_can_be_left_out(checkpoint, tmp_path):
    out = tmp_path / "m.gguf"
    assert convert(checkpoint, "-o", out, "--no-encoder") == 0
    reader = gguf.Reader(out)
    assert not any(n.startswith(("vae.encoder.", "vae.quant_conv.")) for n in reader.tensors)
    assert "bonsai.vae.encoder_widths" not in reader.keys
    assert convert(checkpoint, "--verify", out) == 0


def test_source_without_vae_encoder(checkpoint, tmp_path):
    def drop(tensors):
        for n in [n for n in tensors if n.startswith(("encoder.", "quant_conv."))]:
            del tensors[n]

    edit_weights(checkpoint, "vae", drop)
    assert convert(checkpoint, "-o", tmp_path / "m.gguf") == 0
    assert "bonsai.vae.encoder_widths" not in gguf.Reader(tmp_path / "m.gguf").keys


def test_final_norm_is_stored_when_the_last_layer_is_read(checkpoint, tmp_path):
    edit_json(checkpoint / "model_index.json", text_encoder_out_layers=[1, 3])
    assert convert(checkpoint, "-o", tmp_path / "m.gguf") == 0
    reader = gguf.Reader(tmp_path / "m.gguf")
    assert reader.keys["bonsai.te.final_norm"] is True
    assert reader.tensors["te.output_norm.weight"].shape == (128,)


def test_bare_encoder_names(checkpoint, tmp_path):
    def strip(tensors):
        for n in list(tensors):
            tensors[n[len("model.") :]] = tensors.pop(n)

    edit_weights(checkpoint, "text_encoder", strip)
    assert convert(checkpoint, "-o", tmp_path / "m.gguf") == 0


def test_dry_run_writes_nothing(checkpoint, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    before = sorted(p for p in tmp_path.rglob("*"))
    assert convert(checkpoint, "-o", out, "--dry-run", "--compact") == 0
    text = capsys.readouterr().out
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert convert(checkpoint, "-o", out, "--compact") == 0
    assert f"({out.stat().st_size} B)" in text
    assert "PTQ1_0" in text and "the file fits" in text


def set_first(part, name, value):
    """An edit of the first two bytes of a tensor."""

    def change(tensors):
        tensors[name][1][:2] = np.frombuffer(np.uint16(value).tobytes(), np.uint8)

    return part, change


def pop(part, name):
    return part, lambda tensors: tensors.pop(name)


def add(part, name):
    one = ("F32", np.ones(4, np.float32).view(np.uint8), (4,))
    return part, lambda tensors: tensors.update({name: one})


def replace(part, name, dtype, data, shape):
    entry = (dtype, data.view(np.uint8).reshape(-1), shape)
    return part, lambda tensors: tensors.update({name: entry})


@pytest.mark.parametrize("edit, message", [
    (pop("transformer", TO_Q), f"1 of 29 tensors missing, first '{TO_Q}' [128, 128]"),
    (pop("text_encoder", "model.layers.1.mlp.up_proj.weight"), "tensors missing"),
    (pop("vae", "encoder.conv_in.bias"), "tensors missing, first 'encoder.conv_in.bias'"),
    (add("transformer", "transformer_blocks.1.attn.to_q.weight"), "unknown tensor"),
    (add("text_encoder", "model.layers.0.self_attn.q_proj.bias"), "unknown tensor"),
    (add("vae", "decoder.mid_block.extra.weight"), "unknown tensor"),
    (replace("transformer", "proj_out.weight", "F16", np.ones((8, 128), np.float16), (8, 128)),
     "expected shape [32, 128] from config.json, found [8, 128]"),
    (replace("transformer", TO_Q, "U32", np.ones((128, 8), np.uint32), (128, 8)),
     "found U32; this packing is not known"),
    (set_first("transformer", "norm_out.linear.weight", 0x7E00), "NaN or infinity"),
    (set_first("transformer", TO_Q, 0x7C00), "NaN or infinity"),
    (set_first("vae", "decoder.conv_in.weight", 0xFF80), "NaN or infinity"),
    (set_first("text_encoder", "model.norm.weight", 0x7F80), None),  # never read
])  # fmt: skip
def test_damaged_weights(checkpoint, tmp_path, capsys, edit, message):
    part, change = edit
    edit_weights(checkpoint, part, change)
    out = tmp_path / "m.gguf"
    if message is None:
        assert convert(checkpoint, "-o", out) == 0
        return
    text = fails(capsys, checkpoint, "-o", out)
    assert message in text and str(checkpoint / part) in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_a_bad_group_outside_the_sample_is_found(checkpoint, tmp_path, capsys):
    """Only some rows are looked at to plan; packing looks at all."""
    rows = {int(r) for r in np.linspace(0, 127, 32).astype(int)}
    row = next(r for r in range(2, 128) if r not in rows)  # row 1 starts with a zero group

    def change(tensors):
        tensors[TO_Q][1].view(np.uint16).reshape(128, 128)[row, 7] = 0x3C01

    edit_weights(checkpoint, "transformer", change)
    text = fails(capsys, checkpoint, "-o", tmp_path / "m.gguf")
    assert TO_Q in text and "1 of 128 groups" in text and f"row {row}, group 0" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]
    assert convert(checkpoint, "-o", tmp_path / "m.gguf", "--weights", "f16") == 0


def test_zeros_outside_the_sample_turn_binary_into_ternary(binary_checkpoint, tmp_path):
    root = binary_checkpoint

    def change(tensors):
        tensors[TO_Q][1].view(np.uint16).reshape(128, 128)[1, 7] = 0x8000

    edit_weights(root, "transformer", change)
    assert convert(root, "-o", tmp_path / "m.gguf") == 0
    types = types_of(tmp_path / "m.gguf")
    assert types["dit." + TO_Q] == "PTQ1_0"
    assert types["dit." + TO_Q.replace("to_q", "to_k")] == "Q1_0"
    assert convert(root, "--verify", tmp_path / "m.gguf") == 0


def test_one_dense_linear_among_low_bit_ones(checkpoint, tmp_path, capsys):
    noise = np.random.default_rng(0).standard_normal((128, 128)).astype(np.float16)
    part, change = replace("transformer", TO_Q, "F16", noise, (128, 128))
    edit_weights(checkpoint, part, change)
    out = tmp_path / "m.gguf"
    text = fails(capsys, checkpoint, "-o", out, "--weights", "ternary")
    assert TO_Q in text and "128 of 128 groups" in text
    assert convert(checkpoint, "-o", out) == 0  # lossless keeps it as it is, and says so
    assert "1 of 14 block linears are not low-bit" in capsys.readouterr().out
    assert types_of(out)["dit." + TO_Q] == "F16"


def test_ternary_source_refuses_binary(checkpoint, tmp_path, capsys):
    text = fails(capsys, checkpoint, "-o", tmp_path / "m.gguf", "--weights", "binary")
    assert "of 128 groups mix zeros and non-zeros" in text and "leave --weights out" in text


def test_binary_source_can_be_stored_as_ternary(binary_checkpoint, tmp_path):
    root = binary_checkpoint
    assert convert(root, "-o", tmp_path / "m.gguf", "--weights", "ternary") == 0
    assert types_of(tmp_path / "m.gguf")["dit." + TO_Q] == "PTQ1_0"
    assert convert(root, "--verify", tmp_path / "m.gguf") == 0


def test_too_large_for_fp16(dense_checkpoint, tmp_path, capsys):
    name = "model.embed_tokens.weight"
    edit_weights(dense_checkpoint, *set_first("text_encoder", name, 0x4900))  # 524288
    text = fails(capsys, dense_checkpoint, "-o", tmp_path / "m.gguf", "--text-encoder", "f16")
    assert name in text and "too large for F16" in text
    assert convert(dense_checkpoint, "-o", tmp_path / "m.gguf") == 0


def test_half_downloaded(checkpoint, tmp_path, capsys):
    path = checkpoint / WEIGHTS["transformer"]
    path.write_bytes(path.read_bytes()[:-1000])
    text = fails(capsys, checkpoint, "-o", tmp_path / "m.gguf")
    assert "half downloaded" in text and str(path) in text


@pytest.mark.parametrize("spoil, message", [
    (lambda m: m[:-40], "cut off"),
    (lambda m: m[:-33] + bytes([m[-33] ^ 1]) + m[-32:], "FAULT"),
    (lambda m: m.replace(b"bonsai.default.steps\4\0\0\0\4", b"bonsai.default.steps\4\0\0\0\5"),
     "FAULT key 'bonsai.default.steps'"),
    (lambda m: b"GGML" + m[4:], "no GGUF v3"),
])  # fmt: skip
def test_verify_finds_damage(checkpoint, tmp_path, capsys, spoil, message):
    out = tmp_path / "m.gguf"
    assert convert(checkpoint, "-o", out) == 0
    whole = out.read_bytes()
    assert spoil(whole) != whole
    out.write_bytes(spoil(whole))
    capsys.readouterr()
    assert convert(checkpoint, "--verify", out) == 1
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_verify_finds_another_source(checkpoint, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert convert(checkpoint, "-o", out, "--compact") == 0
    other = tmp_path / "other"
    minimal.write_checkpoint(other, "ternary", seed=1)
    capsys.readouterr()
    assert convert(other, "--verify", out) == 1
    text = capsys.readouterr().out
    assert "PTQ1_0 codes or scales differ" in text and "another source?" in text


@pytest.mark.parametrize("args, message", [
    ([], "-o FILE is required"),
    (["--wieghts", "f16", "-o", "x.gguf"], "did you mean --weights?"),
    (["-o", "x", "--verify", "y"], "--verify writes nothing"),
    (["-o", "x", "--weights", "q2"], "invalid choice"),
    (["-o", "x", "--revision", "main"], "--revision belongs to Hub ids"),
])  # fmt: skip
def test_usage_errors(checkpoint, capsys, args, message):
    assert message in fails(capsys, checkpoint, *args, code=2)


def test_sources_that_are_none(checkpoint, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert "no such directory" in fails(capsys, tmp_path / "nowhere", "-o", out)
    assert "a file; SOURCE is" in fails(capsys, checkpoint / "model_index.json", "-o", out)
    assert "model_index.json" in fails(capsys, checkpoint / "vae", "-o", out)
    packed = tmp_path / "packed"
    (packed / "transformer-packed-mflux").mkdir(parents=True)
    assert "model_index.json, transformer, text_encoder, vae, tokenizer missing" in fails(
        capsys, packed, "-o", out
    )


def test_pieces_cover_every_row_once(checkpoint, monkeypatch):
    monkeypatch.setattr(stream, "_PIECE", 1000)
    seen = []
    original = stream.read_and_encode

    def note(files, piece):
        seen.append((piece.item.info.name, piece.first, piece.rows))
        return original(files, piece)

    monkeypatch.setattr(stream, "read_and_encode", note)
    out = checkpoint.parent / "m.gguf"
    assert convert(checkpoint, "-o", out) == 0
    rows = {}
    for name, first, count in sorted(seen):
        assert first == rows.get(name, 0)
        rows[name] = first + count
    assert rows == {n: t.rows for n, t in gguf.Reader(out).tensors.items()}
    assert len(seen) > len(rows)
    assert json.loads((checkpoint / "model_index.json").read_text())["is_distilled"]
