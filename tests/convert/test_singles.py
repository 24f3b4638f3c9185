# SPDX-License-Identifier: Apache-2.0
"""Single files of BFL, ComfyUI, llama.cpp and stable-diffusion.cpp: what comes out is, byte for
byte, what the directory they were made from gives."""

import json

import foreign
import minimal
import numpy as np
import pytest
from bonsai_convert import cli, fp8, gguf
from bonsai_convert import tokenizer as tokenizer_module
from bonsai_convert.errors import ConvertError

KINDS = ("ternary", "binary", "dense")


def convert(*arguments):
    assert cli.main([str(a) for a in arguments]) == 0
    return gguf.Reader(arguments[-1])


def settings(model):
    """Keys that decide what is drawn."""
    return {
        k: v for k, v in model.keys.items()
        if k.startswith(("bonsai.", "tokenizer.")) and k != gguf.HASH_KEY
    }  # fmt: skip


def assert_same(found, expected):
    assert dict(zip(found.tensors, found.keys[gguf.HASH_KEY])) == dict(
        zip(expected.tensors, expected.keys[gguf.HASH_KEY])
    )
    assert settings(found) == settings(expected)


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    """Checkpoints that read the prompt after layers 9, 18 and 27, as single files assume."""
    root = tmp_path_factory.mktemp("klein")
    for kind in KINDS:
        minimal.write_checkpoint(root / kind, kind)
        rng = np.random.default_rng(7)
        encoder = minimal.text_encoder(rng, layers=29)
        minimal.write_safetensors(root / kind / minimal.WEIGHTS["text_encoder"], encoder)
        minimal.edit_json(root / kind / "text_encoder" / "config.json", num_hidden_layers=29,
                          rope_parameters=..., rope_theta=1e6)  # fmt: skip
        minimal.edit_json(root / kind / "model_index.json", text_encoder_out_layers=...)
        minimal.edit_json(root / kind / "transformer" / "config.json", joint_attention_dim=384)
        minimal.edit_json(root / kind / "vae" / "config.json", norm_num_groups=32)

        def widen(tensors):
            wide = np.tile(tensors["context_embedder.weight"][1].reshape(128, -1), 2)
            dtype, width = tensors["context_embedder.weight"][0], 384
            raw = np.ascontiguousarray(wide[:, : 2 * width]).reshape(-1)
            tensors["context_embedder.weight"] = (dtype, raw, (128, width))

        minimal.edit_weights(root / kind, "transformer", widen)
        convert(root / kind, "-o", root / f"{kind}.gguf")
    return root


def text_gguf(root, path, matrix="BF16"):
    tensors = {
        n: foreign.as_type(t, matrix if len(t[2]) == 2 else "F32")
        for n, t in foreign.llama(foreign.read(root, "text_encoder")).items()
    }
    tokenizer = json.loads((root / "tokenizer" / "tokenizer.json").read_text())
    keys = foreign.tokenizer_keys(tokenizer, minimal.TEMPLATE, minimal.VOCAB)
    foreign.write_gguf(path, tensors, keys)
    return path


def vae_file(root, path, prefix=""):
    tensors = foreign.ldm(foreign.read(root, "vae"))
    minimal.write_safetensors(path, {prefix + n: t for n, t in tensors.items()})
    return path


def parts(root, path, transformer):
    """The three options, encoder and VAE from the checkpoint's own folders."""
    return (
        "--transformer", transformer, "--text-encoder", root / "text_encoder",
        "--vae", root / "vae", "-o", path,
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("kind", KINDS)
def test_bfl_safetensors(klein, tmp_path, kind, prefix):
    root = klein / kind
    tensors = foreign.bfl(foreign.read(root, "transformer"))
    if prefix == "diffusion_model.":  # as some exports have it
        tensors = {n.replace("_norm.scale", "_norm.weight"): t for n, t in tensors.items()}
    file = tmp_path / "klein.safetensors"
    minimal.write_safetensors(file, {prefix + n: t for n, t in tensors.items()})
    vae = vae_file(root, tmp_path / "vae.safetensors", "first_stage_model." if prefix else "")
    found = convert(
        "--transformer", file, "--text-encoder", root / "text_encoder" / "model.safetensors",
        "--vae", vae, "-o", tmp_path / "m.gguf",
    )  # fmt: skip
    assert_same(found, gguf.Reader(klein / f"{kind}.gguf"))
    assert found.keys["general.name"] == "klein"
    assert found.keys["bonsai.default.steps"] == 4


def dit_gguf(root, path, kind, ids=None, prefix=""):
    tensors = {}
    for name, tensor in foreign.bfl(foreign.read(root, "transformer")).items():
        block = "_blocks." in name and len(tensor[2]) == 2
        tensors[prefix + name] = foreign.as_type(tensor, kind if block else tensor[0])
    foreign.write_gguf(path, tensors, ids=ids)
    return path


@pytest.mark.parametrize(
    "kind, packing, ids",
    [
        ("binary", "Q1_0", None),
        ("ternary", "Q2_0", None),
        ("ternary", "PQ2_0", None),
        ("ternary", "PQ2_0", {"PQ2_0": 42}),  # what a fork's first releases called it
        ("ternary", "PTQ1_0", None),
        ("ternary", "F32", None),
        ("dense", "BF16", None),
    ],
)
def test_gguf_transformer(klein, tmp_path, kind, packing, ids):
    root = klein / kind
    file = dit_gguf(root, tmp_path / "dit.gguf", packing, ids, "model.diffusion_model.")
    found = convert(*parts(root, tmp_path / "m.gguf", file))
    assert_same(found, gguf.Reader(klein / f"{kind}.gguf"))


def test_gguf_text_encoder_and_vae(klein, tmp_path):
    """llama.cpp's encoder with its tokenizer, a VAE in GGUF: a whole model of GGUF files."""
    root = klein / "ternary"
    vae = tmp_path / "vae.gguf"
    tensors = foreign.ldm(foreign.read(root, "vae"))
    foreign.write_gguf(vae, {
        "vae." + n: foreign.as_type(t, t[0]) for n, t in tensors.items() if t[0] != "I64"
    })  # fmt: skip
    found = convert(
        "--transformer", dit_gguf(root, tmp_path / "dit.gguf", "Q2_0"),
        "--text-encoder", text_gguf(root, tmp_path / "qwen.gguf"), "--vae", vae,
        "-o", tmp_path / "m.gguf",
    )  # fmt: skip
    expected = gguf.Reader(klein / "ternary.gguf")
    hashes = dict(zip(expected.tensors, expected.keys[gguf.HASH_KEY]))
    for name, digest in zip(found.tensors, found.keys[gguf.HASH_KEY]):
        if not (name.startswith("te.") and name.endswith("norm.weight")):  # llama.cpp's are F32
            assert hashes[name] == digest, name
    assert settings(found) == settings(expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_of_the_encoder_are_taken_over(klein, tmp_path, kind):
    root = klein / "binary"
    encoder = text_gguf(root, tmp_path / "qwen.gguf", kind)
    found = convert(
        "--transformer", root / "transformer", "--text-encoder", encoder, "--vae", root / "vae",
        "-o", tmp_path / "m.gguf",
    )  # fmt: skip
    theirs = gguf.Reader(encoder)
    name = "blk.4.attn_q.weight"
    a, b = theirs.tensors[name], found.tensors[f"te.{name}"]
    assert b.type.name == kind and a.nbytes == b.nbytes
    raw, ours = encoder.read_bytes(), (tmp_path / "m.gguf").read_bytes()
    assert raw[a.offset : a.offset + a.nbytes] == ours[b.offset : b.offset + b.nbytes]


def test_one_file_with_everything(klein, tmp_path):
    """stable-diffusion.cpp's: three prefixes in one file, given three times."""
    root = klein / "binary"
    tensors = {}
    for start, names in (
        ("model.diffusion_model.", foreign.bfl(foreign.read(root, "transformer"))),
        ("text_encoders.llm.", foreign.read(root, "text_encoder")),
        ("first_stage_model.", foreign.ldm(foreign.read(root, "vae"))),
    ):
        tensors |= {start + n: foreign.as_type(t, t[0]) for n, t in names.items() if t[0] != "I64"}
    file = tmp_path / "all.gguf"
    foreign.write_gguf(file, tensors)
    found = convert(
        "--transformer", file, "--text-encoder", file, "--vae", file, "--tokenizer",
        root / "tokenizer", "-o", tmp_path / "m.gguf",
    )  # fmt: skip
    assert_same(found, gguf.Reader(klein / "binary.gguf"))


def test_parts_replace_those_of_a_directory(klein, tmp_path):
    """A directory with another VAE, and types beside parts."""
    root = klein / "ternary"
    vae = vae_file(root, tmp_path / "vae.safetensors")
    found = convert(root, "--vae", vae, "--vae", "f16", "-o", tmp_path / "m.gguf")
    expected = convert(root, "--vae", "f16", "-o", tmp_path / "n.gguf")
    assert_same(found, expected)


def test_small_decoder(klein, tmp_path):
    """A VAE whose decoder has other widths than its encoder, without any settings."""
    tensors = foreign.ldm(foreign.read(klein / "dense", "vae"))

    def narrow(name, tensor):
        if not name.startswith("decoder."):
            return tensor
        dtype, data, shape = tensor
        x = foreign.values(tensor)
        keep = [32 if n == 64 else n for n in shape]
        if name.startswith("decoder.up.0.") and "conv_shortcut" in name:
            return None
        x = x[tuple(slice(0, n) for n in keep)]
        return (dtype, minimal.bf16(x).reshape(-1), tuple(keep))

    small = {n: narrow(n, t) for n, t in tensors.items() if "decoder.up.0.block.0.nin" not in n}
    file = tmp_path / "small.safetensors"
    minimal.write_safetensors(file, small)
    found = convert(klein / "dense", "--vae", file, "-o", tmp_path / "m.gguf")
    assert found.keys["bonsai.vae.decoder_widths"] == [32, 32, 32, 32]
    assert found.keys["bonsai.vae.encoder_widths"] == [32, 64, 64, 64]


def test_klein_base(klein, tmp_path):
    root = klein / "dense"
    found = convert("--base", *parts(root, tmp_path / "m.gguf", root / "transformer"))
    assert found.keys["bonsai.distilled"] is False
    assert (found.keys["bonsai.default.steps"], found.keys["bonsai.default.guidance"]) == (50, 4.0)


def fp8_file(root, path, scale, leaf="weight_scale"):
    """Block matrices as E4M3 codes; returns their values by diffusers name."""
    tensors, truth = {}, {}
    rng = np.random.default_rng(2)
    for name, tensor in foreign.bfl(foreign.read(root, "transformer")).items():
        if "_blocks." in name and len(tensor[2]) == 2:
            codes = rng.integers(0, 0x7F, tensor[2], np.uint8)
            codes |= rng.integers(0, 2, tensor[2], np.uint8) << 7
            tensors[name] = ("F8_E4M3", codes, tensor[2])
            truth[name] = fp8.VALUES["F8_E4M3"][codes]
            if scale is not None:
                stem = name.removesuffix("weight")
                tensors[stem + leaf] = ("F32", np.float32([scale]), ())
                tensors[stem + "input_scale"] = ("F32", np.float32([3]), ())
                truth[name] = truth[name] * np.float32(scale)
        else:
            tensors[name] = tensor
    minimal.write_safetensors(path, tensors)
    return truth


@pytest.mark.parametrize(
    "scale, leaf", [(None, ""), (0.25, "weight_scale"), (0.0371, "scale_weight")]
)
def test_fp8(klein, tmp_path, scale, leaf, capsys):
    root, file = klein / "dense", tmp_path / "fp8.safetensors"
    truth = fp8_file(root, file, scale, leaf)
    found = convert(*parts(root, tmp_path / "m.gguf", file))
    t = found.tensors["dit.single_transformer_blocks.0.attn.to_out.weight"]
    assert t.type.name == "BF16"
    raw = (tmp_path / "m.gguf").read_bytes()[t.offset : t.offset + t.nbytes]
    stored = foreign.values(("BF16", np.frombuffer(raw, np.uint8), t.shape))
    wanted = truth["single_blocks.0.linear2.weight"]
    if scale == 0.0371:  # products of the scale do not fit into bfloat16
        assert np.allclose(stored, wanted, rtol=2**-8, atol=0)
        assert not np.array_equal(stored, wanted)
    else:
        assert np.array_equal(stored, wanted)


def test_fp8_values_are_torchs():
    torch = pytest.importorskip("torch")
    for name, kind in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        codes = torch.arange(256, dtype=torch.uint8)
        wanted = codes.view(kind).to(torch.float32).numpy()
        found = fp8.VALUES[name]
        finite = np.isfinite(wanted)
        assert np.array_equal(found[finite], wanted[finite])
        assert not np.isfinite(found[~finite]).any()


def test_q2_k_is_read_with_a_warning(klein, tmp_path, capsys):
    root = klein / "ternary"
    tensors = {}
    rng = np.random.default_rng(1)
    for name, tensor in foreign.bfl(foreign.read(root, "transformer")).items():
        n, k = tensor[2] if len(tensor[2]) == 2 else (0, 1)
        if "_blocks." in name and n and k % 256 == 0:
            raw = rng.integers(0, 256, (n * k // 256, 84), np.uint8)
            raw[:, 80:84] = np.float16([0.002, 0.003]).view(np.uint8)
            tensors[name] = ("Q2_K", raw.tobytes(), tensor[2])
        else:
            kind = "F16" if "_blocks." in name and n else tensor[0]
            tensors[name] = foreign.as_type(tensor, kind)
    assert any(t[0] == "Q2_K" for t in tensors.values())
    foreign.write_gguf(tmp_path / "q2k.gguf", tensors)
    code = cli.main([str(a) for a in parts(root, tmp_path / "m.gguf", tmp_path / "q2k.gguf")])
    captured = capsys.readouterr()
    assert code == 0
    text = captured.out + captured.err
    assert "22 %" in text and "bonsai-image-ternary-4B-unpacked" in text


@pytest.mark.parametrize("change, words", [
    ({"guidance_in.in_layer.weight": ("F32", bytes(128), (4, 8))}, "FLUX.2 dev"),
    ({"double_blocks.0.extra.weight": ("F32", bytes(128), (4, 8))}, "unknown tensor"),
    ({"double_blocks.1.img_attn.proj.weight": ("F32", bytes(128), (4, 8))}, "missing"),
    ({"img_in.weight": None}, "no transformer in it"),
    ({"double_blocks.0.img_attn.qkv.weight": ("F32", bytes(160), (5, 8))}, "equal height"),
    ({"final_layer.adaLN_modulation.1.weight": ("F32", bytes(160), (5, 8))}, "a shift and a scale"),
    ({"x.img_in.weight": ("F32", bytes(128), (4, 8))}, "cannot be told"),
])  # fmt: skip
def test_wrong_transformers(klein, tmp_path, capsys, change, words):
    root = klein / "dense"
    tensors = {n: foreign.as_type(t, t[0])
               for n, t in foreign.bfl(foreign.read(root, "transformer")).items()}  # fmt: skip
    tensors |= change
    tensors = {n: t for n, t in tensors.items() if t is not None}
    foreign.write_gguf(tmp_path / "dit.gguf", tensors)
    output = tmp_path / "m.gguf"
    assert cli.main([str(a) for a in parts(root, output, tmp_path / "dit.gguf")]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not output.exists()


def test_damaged_scales_and_rotated_weights(klein, tmp_path, capsys):
    root, file = klein / "binary", tmp_path / "dit.gguf"
    dit_gguf(root, file, "Q1_0")
    t = gguf.Reader(file).tensors["double_blocks.0.img_attn.qkv.weight"]
    data = bytearray(file.read_bytes())
    data[t.offset : t.offset + 2] = b"\x00\x7c"
    file.write_bytes(data)
    arguments = [str(a) for a in parts(root, tmp_path / "m.gguf", file)]
    assert cli.main(arguments) == 1
    assert "a scale is NaN or infinity" in capsys.readouterr().err
    rotated = foreign.key("prism.hadamard.size", foreign.U32, foreign.scalar(foreign.U32, 128))
    foreign.write_gguf(file, {"img_in.weight": ("F32", bytes(128), (4, 8))}, [rotated])
    assert cli.main(arguments) == 1
    assert "Hadamard-rotated" in capsys.readouterr().err


def test_without_a_tokenizer(klein, tmp_path, capsys):
    root, lone = klein / "dense", tmp_path / "lone" / "encoder.safetensors"
    lone.parent.mkdir()
    lone.write_bytes((root / "text_encoder" / "model.safetensors").read_bytes())
    given = ["--transformer", root / "transformer", "--text-encoder", lone, "--vae", root / "vae"]
    given = [str(a) for a in given]
    assert cli.main([*given, "-o", str(tmp_path / "m.gguf")]) == 1
    assert "give --tokenizer" in capsys.readouterr().err
    tokenizer = str(root / "tokenizer" / "tokenizer.json")
    found = convert(*given, "--tokenizer", tokenizer, "-o", tmp_path / "m.gguf")
    assert_same(found, gguf.Reader(klein / "dense.gguf"))


@pytest.mark.parametrize("arguments, words", [
    (["--transformer", "x"], "SOURCE is required"),
    (["d", "--vae", "f16", "--vae", "keep"], "one type and one part at most"),
    (["d", "--text-encoder", "q5"], "no such file or directory, and no type"),
    (["d", "--base"], "--base belongs to single files"),
])  # fmt: skip
def test_usage(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "-o", "m.gguf"])
    assert caught.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_file_is_a_source(klein, tmp_path, kind):
    """Made anew from itself it is the same; in other types it is what the checkpoint gives."""
    model = klein / f"{kind}.gguf"
    again = convert(model, "-o", tmp_path / "a.gguf")
    first = gguf.Reader(model)
    assert_same(again, first)
    general = {k: v for k, v in first.keys.items() if k.startswith("general.")}
    assert general == {k: v for k, v in again.keys.items() if k.startswith("general.")}
    compact = convert(model, "--compact", "--no-encoder", "-o", tmp_path / "b.gguf")
    assert_same(
        compact, convert(klein / kind, "--compact", "--no-encoder", "-o", tmp_path / "c.gguf")
    )


@pytest.mark.parametrize("name, kind, value, words", [
    ("tokens", foreign.U32, foreign.scalar(foreign.U32, 1), "is no list of str"),
    ("tokens", 9, foreign.array(foreign.U32, [1]), "is no list of str"),
    ("tokens", 9, foreign.array(foreign.STRING, ["a", "a"]), "320 types of tokens"),
    ("token_type", 9, foreign.array(foreign.STRING, ["a"]), "is no list of int"),
    ("merges", 9, foreign.array(foreign.I32, [1]), "is no list of str"),
    ("merges", 9, foreign.array(foreign.STRING, ["h"]), "does not join two tokens"),
    ("pre", foreign.STRING, foreign.string("llama-bpe"), "expected 'qwen2'"),
    ("model", foreign.U32, foreign.scalar(foreign.U32, 1), "expected 'gpt2'"),
    ("padding_token_id", foreign.U32, foreign.scalar(foreign.U32, 0), "an added token"),
    ("chat_template", foreign.STRING, foreign.string("no"), "the chat template lacks"),
], ids=range(10))  # fmt: skip
def test_tokenizers_of_gguf_files_that_lie(klein, tmp_path, name, kind, value, words):
    tokenizer = json.loads((klein / "dense" / "tokenizer" / "tokenizer.json").read_text())
    keys = foreign.tokenizer_keys(tokenizer, minimal.TEMPLATE, minimal.VOCAB)
    full = f"tokenizer.{'' if name == 'chat_template' else 'ggml.'}{name}"
    keys = [k for k in keys if not k.startswith(foreign.string(full))]
    file = tmp_path / "t.gguf"
    foreign.write_gguf(
        file, {"t": ("F32", bytes(32), (8,))}, [*keys, foreign.key(full, kind, value)]
    )
    with pytest.raises(ConvertError, match=words) as caught:
        tokenizer_module.gguf_keys(file, minimal.VOCAB)
    assert "t.gguf" in str(caught.value)
