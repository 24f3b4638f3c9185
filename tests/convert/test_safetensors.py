# SPDX-License-Identifier: Apache-2.0
"""The safetensors reader believes nothing that it has not checked."""

import json
import struct

import numpy as np
import pytest
from bonsai_convert import safetensors
from bonsai_convert.errors import ConvertError
from minimal import write_safetensors

GOOD = {"a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}


def write_raw(path, header, data=b"\0" * 12, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(**changes):
    return {"a": GOOD["a"] | changes}


def test_reads_values_in_any_pieces(tmp_path):
    data = np.arange(60, dtype=np.float16)
    write_safetensors(tmp_path / "m.safetensors", {"x": ("F16", data, (6, 10))})
    e = safetensors.open_component(tmp_path, "m")["x"]
    files = safetensors.Files()
    for first, count in ((0, 60), (7, 13), (59, 1), (0, 0)):
        part = files.read(e, first, count)
        assert np.array_equal(part.view(np.float16), data[first : first + count])
    files.close()


@pytest.mark.parametrize("header, message", [
    (entry(dtype="F12"), "unknown dtype"),
    (entry(dtype=["F16"]), "unknown dtype"),
    (entry(shape=[2, -3]), "bad shape"),
    (entry(shape=[2, 3.0]), "bad shape"),
    (entry(shape=[2, True]), "bad shape"),
    (entry(shape=[1 << 62, 1 << 62]), "bad shape"),
    (entry(shape=[1] * 9), "bad shape"),
    (entry(shape=None), "bad shape"),
    (entry(data_offsets=[12, 0]), "bad data_offsets"),
    (entry(data_offsets=[0]), "bad data_offsets"),
    (entry(data_offsets=[0, 10]), "needs 12 bytes"),
    (entry(data_offsets=[4, 16]), "4 bytes before tensor 'a' belong to none"),
    (entry(shape=[2, 4], data_offsets=[0, 16]), "half downloaded"),
    (entry(shape=[1, 3], data_offsets=[0, 6]), "6 bytes behind its last tensor"),
    ({"a\n": GOOD["a"]}, "has the name"),
    ({"a" * 2000: GOOD["a"]}, "has the name"),
    (GOOD | {"__metadata__": 3}, "__metadata__"),
    (b'{"\\ud800": 1}', "not valid Unicode"),
    (b'{"a": NaN}', "NaN is no JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ({"a": GOOD["a"], "b": GOOD["a"]}, "overlaps"),
    ({"a": 3}, "no object"),
    ([1], "no object"),
    (b"{'a'}", "not valid JSON"),
    (b"\xff\xfe" * 4, "not valid JSON"),
    (b"[" * 100000, "not valid JSON"),
    (b'{"a": 1, "a": 2}', "occurs twice"),
])  # fmt: skip
def test_bad_headers(tmp_path, header, message):
    with pytest.raises(ConvertError, match=message):
        safetensors.read_header(write_raw(tmp_path / "f.safetensors", header))


@pytest.mark.parametrize("content, message", [
    (b"", "too short"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (struct.pack("<Q", 1 << 40) + b"{}", "expected 2 to"),
    (struct.pack("<Q", 1000) + b"{}", "ends after"),
    (struct.pack("<Q", 0), "expected 2 to"),
])  # fmt: skip
def test_bad_starts(tmp_path, content, message):
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=message):
        safetensors.read_header(path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"x": ("F32", np.ones(5, np.float32), (5,))})
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(ConvertError):
            safetensors.read_header(path)


@pytest.fixture
def sharded(tmp_path):
    one = ("F32", np.ones(2, np.float32), (2,))
    for i in (1, 2):
        write_safetensors(tmp_path / f"m-0000{i}-of-00002.safetensors", {f"t{i}": one})
    index = {"weight_map": {f"t{i}": f"m-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_shards_are_joined(sharded):
    assert sorted(safetensors.open_component(sharded, "m")) == ["t1", "t2"]


def test_missing_shard_is_named(sharded):
    (sharded / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConvertError, match="1 of 2 shards missing: m-00002-of-00002"):
        safetensors.open_component(sharded, "m")


def test_half_downloaded_shard_is_named(sharded):
    path = sharded / "m-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConvertError, match="m-00002.*half downloaded"):
        safetensors.open_component(sharded, "m")


def test_single_file_stands_in_for_an_incomplete_index(sharded):
    (sharded / "m-00002-of-00002.safetensors").unlink()
    write_safetensors(sharded / "m.safetensors", {"t": ("F32", np.ones(1, np.float32), (1,))})
    assert list(safetensors.open_component(sharded, "m")) == ["t"]


@pytest.mark.parametrize("weight_map, message", [
    ({"t1": "../secret"}, "must map"),
    ({"t1": 7}, "must map"),
    (None, "must map"),
    ({}, "must map"),
    ({"t1": ".."}, "must map"),
    ({"t1": "m-00001-of-00002.safetensors", "t2": "m-00001-of-00002.safetensors"}, "not here"),
    ({"t1": "m-00001-of-00002.safetensors", "t3": "m-00002-of-00002.safetensors"}, "different"),
])  # fmt: skip
def test_bad_index(sharded, weight_map, message):
    (sharded / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConvertError, match=message):
        safetensors.open_component(sharded, "m")


def test_what_to_do_without_weights(tmp_path, sharded):
    (sharded / "m.safetensors.index.json").unlink()
    with pytest.raises(ConvertError, match="their index is not"):
        safetensors.open_component(sharded, "m")
    other = tmp_path / "other"
    other.mkdir()
    (other / "m.bin").write_bytes(b"x")
    with pytest.raises(ConvertError, match="safe_serialization"):
        safetensors.open_component(other, "m")
