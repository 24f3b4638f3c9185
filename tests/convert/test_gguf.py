# SPDX-License-Identifier: Apache-2.0
"""Writer and reader of the model file: agreement, atomicity, and a reader that trusts nothing."""

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bonsai_convert import ggml_types as types
from bonsai_convert import gguf
from bonsai_convert.errors import ConvertError

TENSORS = [
    gguf.TensorInfo("a.packed", (3, 256), types.PTQ1_0),
    gguf.TensorInfo("b.vector", (7,), types.F32),
    gguf.TensorInfo("c.conv", (2, 3, 3, 4), types.F16),
]
KEYS = {
    "general.architecture": gguf.string("bonsai"),
    "k.text": gguf.string("Grüße ☕"),
    "k.u32": gguf.u32(4_000_000_000),
    "k.f32": gguf.f32(0.1),
    "k.bool": gguf.boolean(True),
    "k.ids": gguf.i32_array([-1, 5]),
    "k.words": gguf.string_array(["", "Ġthe", "日本"]),
}


def payloads():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, t.nbytes).astype(np.uint8) for t in TENSORS]


def write(path, data):
    with gguf.Writer(path, KEYS, TENSORS) as w:
        w.start()
        for d in data:
            w.write(d[:5])
            w.write(d[5:])
            w.end_tensor()
        w.commit()


def test_what_is_written_is_read(tmp_path):
    path, data = tmp_path / "m.gguf", payloads()
    write(path, data)
    reader = gguf.Reader(path)
    assert reader.keys["k.text"] == "Grüße ☕"
    assert reader.keys["k.words"] == ["", "Ġthe", "日本"]
    assert reader.keys["k.f32"] == np.float32(0.1)
    assert [reader.keys[k] for k in ("k.u32", "k.bool", "k.ids")] == [4_000_000_000, True, [-1, 5]]
    raw = path.read_bytes()
    hashes = reader.keys[gguf.HASH_KEY]
    assert list(reader.tensors) == [t.name for t in TENSORS]
    for t, d, h in zip(reader.tensors.values(), data, hashes):
        assert t.offset % gguf.ALIGNMENT == 0
        assert raw[t.offset : t.offset + t.nbytes] == d.tobytes()
        assert h == hashlib.sha256(d.tobytes()).hexdigest()
    assert [t.shape for t in reader.tensors.values()] == [t.shape for t in TENSORS]
    assert len(raw) % gguf.ALIGNMENT == 0


def test_public_reader_agrees(tmp_path):
    public = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    infos = [t for t in TENSORS if t.type is not types.PTQ1_0]  # a type it does not know
    with gguf.Writer(path, KEYS, infos) as w:
        w.start()
        for t in infos:
            w.write(np.arange(t.nbytes, dtype=np.uint8))
            w.end_tensor()
        w.commit()
    reader = public.GGUFReader(path)
    assert reader.fields["k.words"].contents() == ["", "Ġthe", "日本"]
    for t, mine in zip(reader.tensors, infos):
        assert (t.name, tuple(t.shape)) == (mine.name, tuple(reversed(mine.shape)))
        assert t.data.tobytes() == np.arange(mine.nbytes, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("name", ["gguf_std_types.gguf", "gguf_custom_types.gguf"])
def test_files_of_other_writers(formats, name):
    reader = gguf.Reader(formats / name)
    raw = (formats / name).read_bytes()
    found = {}
    for t in reader.tensors.values():
        found[t.type.name] = raw[t.offset : t.offset + t.nbytes]
    with np.load(formats / "ggml_blocks.npz") as blocks:
        assert found["Q1_0"] == blocks["q1_0.bytes"].tobytes()
        if "custom" in name:
            assert found["PQ2_0"] == blocks["pq2_0.bytes_handmade"].tobytes()
            assert found["Q2_0"] == blocks["q2_0.bytes"].tobytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "no space"), ConvertError("x")])
def test_leaving_early_leaves_nothing(tmp_path, error):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"an older model")
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        with gguf.Writer(path, KEYS, TENSORS) as w:
            w.start()
            w.write(payloads()[0])
            raise error
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"an older model"


def test_wrong_amounts_are_refused(tmp_path):
    for action in ("short tensor", "early commit"):
        with pytest.raises(AssertionError):
            with gguf.Writer(tmp_path / "m.gguf", KEYS, TENSORS) as w:
                w.start()
                w.write(np.zeros(TENSORS[0].nbytes - (action == "short tensor"), np.uint8))
                w.end_tensor()
                w.commit()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("infos", [
    [gguf.TensorInfo("x" * 64, (4,), types.F32)],
    [gguf.TensorInfo("x", (4,), types.F32)] * 2,
    [gguf.TensorInfo("x", (1, 1, 1, 1, 4), types.F32)],
])  # fmt: skip
def test_what_the_format_cannot_hold(infos):
    with pytest.raises(ConvertError, match="cannot be stored"):
        gguf.encode_header(KEYS, infos)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, payloads())
    whole = path.read_bytes()
    needed = max(t.offset + t.nbytes for t in gguf.Reader(path).tensors.values())
    for n in [*range(0, needed, 7), needed - 1]:
        path.write_bytes(whole[:n])
        with pytest.raises(ConvertError):
            gguf.Reader(path)


def test_flipped_header_bytes_never_crash(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, payloads())
    whole = bytearray(path.read_bytes())
    header = min(t.offset for t in gguf.Reader(path).tensors.values())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        damaged = whole.copy()
        damaged[rng.integers(0, header)] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            gguf.Reader(path)
        except ConvertError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("at, value, message", [
    (0, b"GGML", "no GGUF v3"),
    (4, struct.pack("<I", 2), "no GGUF v3"),
    (8, struct.pack("<Q", 1 << 60), "damaged"),
])  # fmt: skip
def test_bad_starts(tmp_path, at, value, message):
    path = tmp_path / "m.gguf"
    write(path, payloads())
    raw = bytearray(path.read_bytes())
    raw[at : at + len(value)] = value
    path.write_bytes(raw)
    with pytest.raises(ConvertError, match=message):
        gguf.Reader(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_full_disk_leaves_nothing(tmp_path):
    """A file-size limit makes write() fail as a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "sys.dont_write_bytecode = True\n"  # it would be cut off too, and read next time
        f"sys.path[:0] = {[str(Path(gguf.__file__).parents[1]), str(Path(__file__).parent)]!r}\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "from pathlib import Path\n"
        "import test_gguf\n"
        f"test_gguf.write(Path({str(tmp_path / 'm.gguf')!r}), test_gguf.payloads())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "OSError" in done.stderr
    assert not list(tmp_path.iterdir())
