# SPDX-License-Identifier: Apache-2.0
"""hub:owner/name: fetched once, resumed, checked, converted once, usable without the Hub."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from bonsai_convert import cache, cli, download, gguf
from bonsai_convert.errors import ConvertError
from hub_double import COMMIT, Hub

pytest.importorskip("filelock")
ID = "some-owner/some.model"
SPEC = f"hub:{ID}"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONVERT = Path(cli.__file__).resolve().parents[1] / "convert.py"


@pytest.fixture
def hub(originals, tmp_path, monkeypatch):
    server = Hub(originals / "ternary", ID)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(download, "cached_elsewhere", lambda *_: None)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    yield server
    server.close()


@pytest.fixture
def model(tmp_path):
    return tmp_path / "cache" / "hub" / "some-owner--some.model" / "model.gguf"


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, CONVERT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_fetched_converted_and_then_only_read(hub, model, capsys):
    assert cli.main([SPEC]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{model}\n", "the path alone, for scripts"
    assert "to fetch, then converted once" in captured.err and "lossless" not in captured.out
    keys = gguf.Reader(model).keys
    assert keys["general.source.repo_url"] == f"https://huggingface.co/{ID}/tree/{COMMIT}"
    assert keys["general.name"] == "some.model"
    assert sorted(p.name for p in model.parent.iterdir()) in (
        ["lock", "model.gguf"],
        ["model.gguf"],
    )
    assert set(hub.tokens) == {"Bearer hf_secret"}

    hub.close()  # offline from here on
    before = model.stat()
    assert cli.main([SPEC]) == 0 and cache.ensure(SPEC) == model
    assert capsys.readouterr().out == f"{model}\n"
    assert model.stat() == before


def test_again_takes_other_options(hub, model):
    assert cli.main([SPEC]) == 0
    size = model.stat().st_size
    assert cli.main([SPEC, "--compact"]) == 0
    assert model.stat().st_size == size, "it was there"
    assert cli.main([SPEC, "--compact", "--again"]) == 0
    assert model.stat().st_size < size


def test_output_elsewhere(hub, model, tmp_path, capsys):
    assert cli.main([SPEC, "-o", str(tmp_path / "m.gguf")]) == 0
    assert gguf.Reader(tmp_path / "m.gguf").tensors and not model.exists()
    assert str(model) not in capsys.readouterr().out


def test_ensure_prints_nothing_to_stdout(hub, model, capsys):
    assert cache.ensure(SPEC) == model and model.is_file()
    assert capsys.readouterr().out == ""


def test_a_connection_that_breaks_again_and_again(hub, model):
    hub.cut[WEIGHTS] = 100_000
    assert cli.main([SPEC]) == 0
    firsts = [first for name, first in hub.requests if name == WEIGHTS]
    assert len(firsts) > 3 and firsts == sorted(set(firsts)), "each answer goes on with the next"


def test_goes_on_after_a_stop(hub, model, capsys):
    hub.cut["vae/config.json"] = 0
    assert cli.main([SPEC]) == 1
    assert "goes on where it stopped" in capsys.readouterr().err and not model.exists()
    hub.cut.clear()
    before = {name for name, _ in hub.requests} - {"vae/config.json"}
    assert WEIGHTS in before
    hub.requests.clear()
    assert cli.main([SPEC]) == 0
    assert not before & {name for name, _ in hub.requests}, "nothing is fetched twice"


def test_a_killed_process_left_a_part(hub, model):
    folder = model.parent / "source" / COMMIT / "transformer"
    folder.mkdir(parents=True)
    data = (hub.root / WEIGHTS).read_bytes()
    (folder / (Path(WEIGHTS).name + ".part")).write_bytes(data[:123_456])
    (model.parent / ".model.gguf.123.part").write_bytes(bytes(99))
    assert cli.main([SPEC]) == 0
    assert [first for name, first in hub.requests if name == WEIGHTS] == [123_456]
    assert not (model.parent / ".model.gguf.123.part").exists()


def test_a_server_without_ranges(hub, model):
    hub.cut[WEIGHTS], hub.cuts, hub.ranges = 100_000, 1, False
    assert cli.main([SPEC]) == 0 and gguf.Reader(model).tensors


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer/tokenizer.json"])
def test_wrong_bytes(hub, model, capsys, name):
    hub.wrong.add(name)
    assert cli.main([SPEC]) == 1
    assert "not those of the Hub's hash" in capsys.readouterr().err
    assert not model.exists() and not list(model.parent.rglob(f"{Path(name).name}*"))
    hub.wrong.clear()
    assert cli.main([SPEC]) == 0


def test_a_wrong_part_is_found(hub, model, capsys):
    folder = model.parent / "source" / COMMIT / "transformer"
    folder.mkdir(parents=True)
    (folder / (Path(WEIGHTS).name + ".part")).write_bytes(bytes(1000))
    assert cli.main([SPEC]) == 1
    assert "not those of the Hub's hash" in capsys.readouterr().err
    assert cli.main([SPEC]) == 0


def test_two_processes(hub, model):
    hub.gate.clear()
    first = command(SPEC)
    while not (model.parent / "source").exists():
        assert first.poll() is None
        time.sleep(0.02)
    second = command(SPEC)
    waiting = second.stderr.readline()
    hub.gate.set()
    assert b"another process" in waiting
    outputs = [p.communicate(timeout=120) for p in (first, second)]
    assert first.returncode == second.returncode == 0, outputs
    assert [out.decode().strip() for out, _ in outputs] == [str(model)] * 2
    assert len([n for n, _ in hub.requests if n == WEIGHTS]) == 1, "fetched once"


def test_disk_space_is_checked_before(hub, model, monkeypatch, capsys):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert cli.main([SPEC]) == 1
    error = capsys.readouterr().err
    assert "1.00 kB free" in error and "BONSAI_CACHE" in error
    assert hub.requests == []


@pytest.mark.parametrize("status, code, words", [
    (403, "GatedRepo", "accept its terms"),
    (404, "RevisionNotFound", "no such revision"),
    (401, None, "no such repository"),
    (503, None, "status 503"),
])  # fmt: skip
def test_refusals(hub, capsys, status, code, words):
    hub.status, hub.code = status, code
    assert cli.main([SPEC]) == 1
    error = capsys.readouterr().err
    assert words in error and ID in error and error.count("\n") == 1


def test_unreachable(hub, capsys):
    hub.close()
    assert cli.main([SPEC]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    with pytest.raises(ConvertError, match="cannot be reached"):
        cache.ensure(SPEC)


def test_names_that_lead_elsewhere_are_left_out(hub, model, tmp_path):
    hub.extra = [
        {"rfilename": f"vae/{n}.json", "size": 2, "blobId": "0" * 40}
        for n in ("../../../x", "a\\b", "é")
    ]
    hub.extra += [7, {"rfilename": "vae/x.json", "size": -1, "blobId": "0" * 40}]
    assert cli.main([SPEC]) == 0
    assert not list(tmp_path.rglob("x.json"))


def test_a_file_without_a_hash(hub, capsys):
    hub.extra = [{"rfilename": "vae/x.json", "size": 2, "blobId": None}]
    assert cli.main([SPEC]) == 1
    assert "no hash for 'vae/x.json'" in capsys.readouterr().err


def test_a_repository_of_gguf_files(hub, tmp_path, capsys):
    hub.root = tmp_path / "repo"
    hub.root.mkdir()
    (hub.root / "klein-Q1_0.gguf").write_bytes(b"GGUF")
    assert cli.main([SPEC]) == 1
    error = capsys.readouterr().err
    assert "klein-Q1_0.gguf" in error and "--transformer" in error


def test_dry_run_lists(hub, capsys):
    assert cli.main([SPEC, "--dry-run"]) == 0
    assert WEIGHTS in capsys.readouterr().out and hub.requests == []


def test_redirects_do_not_carry_the_token(hub, monkeypatch):
    request = download.urllib.request.Request(
        hub.url + "/a", headers={"Authorization": "Bearer hf_secret"}
    )
    follow = download._Redirects().redirect_request
    there = follow(request, None, 302, "Found", {}, "https://cdn.example/a")
    assert not there.has_header("Authorization")
    assert follow(request, None, 302, "Found", {}, hub.url + "/b").has_header("Authorization")


@pytest.mark.parametrize("spec", [
    "hub:", "hub:a", "hub:a/b/c", "hub:../x", "hub:a/b@", "hub:a/../b", "hub:a/b@../c",
])  # fmt: skip
def test_wrong_names(hub, spec, capsys):
    assert cli.main([spec]) == 1
    assert "expected hub:owner/name" in capsys.readouterr().err


def test_places(monkeypatch, tmp_path):
    monkeypatch.delenv("BONSAI_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.parse("hub:a/b@v1/x").path == tmp_path / "bonsai/hub/a--b@v1--x/model.gguf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    if os.name == "posix":
        assert cache.folder() == tmp_path / ".cache" / "bonsai"


@pytest.mark.parametrize("arguments, words", [
    ([SPEC, "--revision", "v1"], "takes @revision"),
    (["x", "--again"], "belongs to hub:"),
])  # fmt: skip
def test_usage(hub, capsys, arguments, words):
    with pytest.raises(SystemExit):
        cli.main(arguments + ["-o", "m.gguf"])
    assert words in capsys.readouterr().err
