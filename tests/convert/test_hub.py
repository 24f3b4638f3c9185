# SPDX-License-Identifier: Apache-2.0
"""Hub ids: what is asked of huggingface_hub, and what its failures are turned into.

The library is replaced by a double except where it is installed and told to stay offline.
"""

import fnmatch
import sys
from types import SimpleNamespace

import pytest
from bonsai_convert import cli, source
from bonsai_convert.errors import ConvertError

ID = "some-owner/some-model"


class HfHubHTTPError(OSError):
    status = 500

    def __init__(self, text="details"):
        super().__init__(text)
        self.response = SimpleNamespace(status_code=self.status)


class RepositoryNotFoundError(HfHubHTTPError):
    status = 404


class GatedRepoError(RepositoryNotFoundError):
    status = 403


class RevisionNotFoundError(HfHubHTTPError):
    status = 404


class LocalEntryNotFoundError(FileNotFoundError):
    pass


class OfflineModeIsEnabled(ConnectionError):
    pass


@pytest.fixture
def hub(monkeypatch):
    """A huggingface_hub whose snapshot_download does what the test sets."""
    kinds = (HfHubHTTPError, RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError,
             LocalEntryNotFoundError, OfflineModeIsEnabled)  # fmt: skip
    module = SimpleNamespace(
        errors=SimpleNamespace(**{k.__name__: k for k in kinds}), utils=None, calls=[]
    )

    def download(repo_id, revision=None, allow_patterns=None):
        module.calls.append((repo_id, revision, allow_patterns))
        if isinstance(module.result, Exception):
            raise module.result
        return str(module.result)

    module.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_snapshot_is_converted(hub, checkpoint, tmp_path, capsys):
    hub.result = checkpoint
    assert cli.main([ID, "--revision", "v1", "-o", str(tmp_path / "m.gguf")]) == 0
    (repo, revision, patterns) = hub.calls[0]
    assert (repo, revision) == (ID, "v1")
    for wanted in (
        "transformer/config.json", "transformer-gemlite-int2/state_dict.pt",
        "text_encoder-hqq-4bit/tokenizer/tokenizer.json", "tokenizer/tokenizer.json",
    ):  # fmt: skip
        assert any(fnmatch.fnmatch(wanted, p) for p in patterns), wanted
    opened = source.open_source(ID, None)
    assert opened.name == "some-model"
    assert opened.origin == f"https://huggingface.co/{ID}/tree/checkpoint"


@pytest.mark.parametrize("error, message", [
    (GatedRepoError(), "accept the terms"),
    (RepositoryNotFoundError(), "no such repository"),
    (RevisionNotFoundError(), "no such revision; check --revision"),
    (LocalEntryNotFoundError("x"), "cannot be reached and the cache does not hold it"),
    (OfflineModeIsEnabled("x"), "cannot be reached"),
    (ConnectionError("refused"), "cannot be reached"),
    (HfHubHTTPError(), "answered with status 500"),
])  # fmt: skip
def test_failures_say_what_to_do(hub, tmp_path, capsys, error, message):
    hub.result = error
    assert cli.main([ID, "-o", str(tmp_path / "m.gguf")]) == 1
    text = capsys.readouterr().err
    assert message in text and ID in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_incomplete_snapshot_is_noticed(hub, checkpoint, tmp_path):
    (checkpoint / "vae" / "config.json").unlink()
    hub.result = checkpoint
    assert cli.main([ID, "-o", str(tmp_path / "m.gguf")]) == 1


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConvertError, match="pip install huggingface_hub"):
        source.open_source(ID, None)


def test_dry_run_lists_and_fetches_nothing(hub, capsys):
    files = [("transformer/a.safetensors", 3_000_000), ("picture.png", 9), ("README.md", None)]
    siblings = [SimpleNamespace(rfilename=n, size=s) for n, s in files]

    class Api:
        def model_info(self, repo, revision, files_metadata):
            assert (repo, revision, files_metadata) == (ID, None, True)
            return SimpleNamespace(siblings=siblings)

    hub.HfApi = Api
    hub.utils = SimpleNamespace(
        filter_repo_objects=lambda names, allow_patterns: (
            [n for n in names if "." in n[:-4]][:1] + ["README.md"]
        )
    )
    assert cli.main([ID, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "transformer/a.safetensors" in text and "picture.png" not in text
    assert "3.00 MB to fetch" in text
    assert not hub.calls


def test_real_library_offline(monkeypatch, tmp_path):
    """The exceptions of the installed library are the ones that are caught."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConvertError, match="cannot be reached and the cache does not hold it"):
        source.open_source(ID, None)
    with pytest.raises(ConvertError, match="cannot be reached"):
        source.hub_listing(ID, None)


def test_ids_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source.is_hub_id(ID)
    assert not source.is_hub_id("./owner/name")
    assert not source.is_hub_id("/a/b")
    assert not source.is_hub_id("just-a-name")
    (tmp_path / "some-owner" / "some-model").mkdir(parents=True)
    assert not source.is_hub_id(ID)
