# SPDX-License-Identifier: Apache-2.0
"""--to diffusers, mlx and sdcpp: converted back it is the same model, and the libraries of those
programs read the same numbers."""

import json

import foreign
import numpy as np
import pytest
from bonsai_convert import cli, gguf
from test_singles import KINDS, assert_same, convert, klein  # noqa: F401


def export(layout, source, folder, *more):
    assert cli.main([str(source), "--to", layout, "-o", str(folder), *more]) == 0
    return folder


@pytest.fixture(scope="module")
def compact(klein, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("compact") / "m.gguf"
    return convert(klein / "ternary", "--compact", "-o", path).path


def back(folder, path):
    return convert(folder, "-o", path)


def sdcpp_back(folder, path):
    return convert(
        "--transformer", folder / "diffusion_model.gguf", "--text-encoder",
        folder / "text_encoder.gguf", "--vae", folder / "vae.safetensors", "-o", path,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["diffusers", "mlx"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(klein, tmp_path, capsys, kind, layout):  # noqa: F811
    model = klein / f"{kind}.gguf"
    folder = export(layout, model, tmp_path / "out")
    assert "no number was changed" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    # The test's checkpoints have fp16 scales and weights; mlx and diffusers keep both.
    first, again = gguf.Reader(model), back(folder, tmp_path / "m.gguf")
    assert_same(again, first)


@pytest.mark.parametrize("kind", KINDS)
def test_sdcpp_there_and_back(klein, tmp_path, capsys, kind):  # noqa: F811
    model = klein / f"{kind}.gguf"
    folder = export("sdcpp", model, tmp_path / "out", "--strict")
    first, again = gguf.Reader(model), sdcpp_back(folder, tmp_path / "m.gguf")
    hashes = dict(zip(first.tensors, first.keys[gguf.HASH_KEY]))
    for name, digest in zip(again.tensors, again.keys[gguf.HASH_KEY]):
        if len(first.tensors[name].shape) > 1:  # vectors are F32 there
            assert digest == hashes[name], name
    dit = gguf.Reader(folder / "diffusion_model.gguf")
    wanted = {"ternary": "Q4_0", "binary": "Q1_0", "dense": "BF16"}[kind]
    assert dit.tensors["double_blocks.0.img_attn.qkv.weight"].type.name == wanted


def test_any_source_can_be_written_out(klein, tmp_path):  # noqa: F811
    a = export("diffusers", klein / "binary", tmp_path / "a")
    b = export("diffusers", klein / "binary.gguf", tmp_path / "b")
    for path in a.rglob("*.safetensors"):
        assert path.read_bytes() == (b / path.relative_to(a)).read_bytes()


def test_gguf_py_reads_the_same(klein, tmp_path):  # noqa: F811
    library = pytest.importorskip("gguf")
    folder = export("sdcpp", klein / "ternary.gguf", tmp_path / "out")
    reader = library.GGUFReader(folder / "diffusion_model.gguf")
    found = {t.name: t for t in reader.tensors}
    truth = foreign.bfl(foreign.read(klein / "ternary", "transformer"))
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        t = found[name]
        values = library.quants.dequantize(t.data, t.tensor_type)
        assert np.array_equal(values.reshape(tensor[2]), foreign.values(tensor)), name
    text = library.GGUFReader(folder / "text_encoder.gguf")
    assert text.fields["general.architecture"].contents() == "qwen3"
    # Not 28: stable-diffusion.cpp would take the encoder for a smaller Qwen3.
    assert text.fields["qwen3.block_count"].contents() == 29


def tokenize(root, text):
    """Ids by the checkpoint's own tokenizer.json, with what the library wants to see in it."""
    tokenizers = pytest.importorskip("tokenizers")
    data = json.loads((root / "tokenizer" / "tokenizer.json").read_text())
    data["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False
    return tokenizers.Tokenizer.from_str(json.dumps(data)).encode(text).ids


@pytest.mark.filterwarnings("ignore")
def test_diffusers_reads_the_same(klein, tmp_path):  # noqa: F811
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    source = klein / "ternary"
    folder = export("diffusers", klein / "ternary.gguf", tmp_path / "out")
    for part, model in (
        ("transformer", diffusers.Flux2Transformer2DModel),
        ("vae", diffusers.AutoencoderKLFlux2),
    ):
        ours, theirs = (
            model.from_pretrained(root / part, torch_dtype=torch.float32).state_dict()
            for root in (folder, source)
        )
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
    text = "hello <|im_start|>é 12"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == tokenize(source, text)
    states = []
    for root in (folder, source):
        model = transformers.Qwen3ForCausalLM.from_pretrained(
            root / "text_encoder", torch_dtype=torch.float32
        )
        with torch.no_grad():
            states.append(model.model(ids, output_hidden_states=True).hidden_states)
    for layer in (9, 18, 27):
        assert torch.equal(states[0][layer], states[1][layer])
    pipeline = diffusers.Flux2KleinPipeline.from_pretrained(folder)
    assert pipeline.config.is_distilled is True


def test_rounding_is_named_or_refused(compact, tmp_path, capsys):
    folder = export("diffusers", compact, tmp_path / "out")
    text = capsys.readouterr().out
    assert "Q4_0 are rounded to BF16" in text and "Q8_0 are rounded to BF16" in text
    assert (folder / "text_encoder" / "model.safetensors").is_file()
    arguments = [str(compact), "--to", "diffusers", "--strict", "-o", str(tmp_path / "strict")]
    assert cli.main(arguments) == 1
    assert "does not fit exactly" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


def encoder_tensors(folder):
    import minimal

    return minimal.read_safetensors(folder / "text_encoder-mlx-4bit" / "model.safetensors")


def test_mlx_holds_4_and_8_bits(compact, tmp_path):
    """By the format's rule, w = q scale + bias; mlx itself is asked below."""
    folder = export("mlx", compact, tmp_path / "out")
    tensors = encoder_tensors(folder)
    settings = json.loads((folder / "text_encoder-mlx-4bit" / "config.json").read_text())
    assert settings["quantization"]["bits"] == 4
    assert settings["quantization"]["model.embed_tokens"] == {"group_size": 32, "bits": 8}
    for ours, theirs, bits in (
        ("te.blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj", 4),
        ("te.token_embd.weight", "model.embed_tokens", 8),
    ):
        t = gguf.Reader(compact).tensors[ours]
        raw = np.frombuffer(compact.read_bytes(), np.uint8)[t.offset : t.offset + t.nbytes]
        blocks = raw.reshape(-1, t.type.bytes)
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        if bits == 4:
            q = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
            wanted = (q.astype(np.float32) - 8) * d
        else:
            wanted = blocks[:, 2:].copy().view(np.int8) * d
        words = tensors[f"{theirs}.weight"][1].view("<u4")
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = ((words[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1, 32)
        scale, bias = (foreign.values(tensors[f"{theirs}.{n}"]).reshape(-1, 1)
                       for n in ("scales", "biases"))  # fmt: skip
        assert np.array_equal(codes * scale + bias, wanted)


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_mlx_itself(klein, compact, tmp_path, kind):  # noqa: F811
    mx = pytest.importorskip("mlx.core")
    folder = export("mlx", klein / f"{kind}.gguf", tmp_path / "out")
    found = mx.load(str(folder / "transformer-packed-mflux/diffusion_pytorch_model.safetensors"))
    truth = foreign.read(klein / kind, "transformer")
    bits = json.loads((folder / "transformer-packed-mflux/quantization_config.json").read_text())

    def values(stem, tensors, group, width):
        scale, bias = (tensors[f"{stem}.{n}"].astype(mx.float32) for n in ("scales", "biases"))
        w = tensors[f"{stem}.weight"]
        return np.array(mx.dequantize(w, scale, bias, group_size=group, bits=width))

    for name, tensor in truth.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in found:
            wanted = foreign.values(tensor)
            assert np.array_equal(values(stem, found, 128, bits["bits"]), wanted), name
        else:
            assert np.array_equal(np.array(found[name].astype(mx.float32)), foreign.values(tensor))
    folder = export("mlx", compact, tmp_path / "compact")
    text = mx.load(str(folder / "text_encoder-mlx-4bit/model.safetensors"))
    t = gguf.Reader(compact).tensors["te.token_embd.weight"]
    raw = np.frombuffer(compact.read_bytes(), np.uint8)[t.offset : t.offset + t.nbytes]
    blocks = raw.reshape(-1, 34)
    wanted = blocks[:, 2:].copy().view(np.int8) * blocks[:, :2].copy().view(np.float16).astype("f4")
    assert np.array_equal(values("model.embed_tokens", text, 32, 8).reshape(-1, 32), wanted)


@pytest.mark.parametrize("arguments, words", [
    (["--to", "mlx"], "-o FILE is required"),
    (["--to", "mlx", "-o", "x", "--compact"], "convert to other types first"),
    (["--to", "mlx", "-o", "x", "--dry-run"], "goes without"),
])  # fmt: skip
def test_usage(klein, capsys, arguments, words):  # noqa: F811
    with pytest.raises(SystemExit):
        cli.main([str(klein / "dense"), *arguments])
    assert words in capsys.readouterr().err


def test_folders_that_are_there_stay(klein, tmp_path, capsys):  # noqa: F811
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    arguments = [str(klein / "dense"), "--to", "diffusers", "-o"]
    assert cli.main([*arguments, str(tmp_path / "out")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "none" / "out")]) == 1
    assert "no such directory" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
