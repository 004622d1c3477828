"""A hub that cannot be asked: the variable that is wrong, or what to do without a network; also for what asks later."""

import httpx
import pytest

from data_prep.common.errors import BadInput
from trainer.model_folder.files import fetch
from trainer.run_dir import trackers

WRONG = {  # variable -> value, part of the message
    "ALL_PROXY": ("socks://127.0.0.1:7890/", "write ALL_PROXY=socks5://127.0.0.1:7890/"),
    "HTTPS_PROXY": ("ftp://127.0.0.1:9", "proxies of the scheme 'ftp' are not supported"),
    "SSL_CERT_FILE": ("/gone", "name a file of certificates in PEM form"),
    "SSL_CERT_DIR": ("/gone", "no such folder, so that no server's certificate is trusted"),
    "HF_ENDPOINT": ("nonsense", "HF_ENDPOINT nonsense: must look like https://huggingface.co"),
    "HF_TOKEN": ("bäd", "HF_TOKEN: holds characters that no header can carry"),
}


@pytest.fixture(autouse=True)
def unasked(monkeypatch, tmp_path):
    """No cache, no proxies, and a hub that refuses connections."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in (*WRONG, "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def failing(monkeypatch, error: Exception) -> None:
    """snapshot_download, as if the library had failed like this."""
    import huggingface_hub

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


@pytest.mark.parametrize("name", WRONG)
def test_the_variable_that_keeps_a_model_from_being_downloaded(name, monkeypatch):
    value, words = WRONG[name]
    monkeypatch.setenv(name, value)
    failing(monkeypatch, ValueError("whatever the library says"))
    with pytest.raises(BadInput) as error:
        fetch("org/nowhere")
    [problem] = error.value.problems
    assert (
        problem.startswith("model.path: 'org/nowhere' is no folder here, and no hub can be asked: ")
        and words in problem
    )


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), OSError(""), RuntimeError("closed")])
def test_what_to_do_without_a_network(error, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:planted@127.0.0.1:9")  # right, but nobody answers
    failing(monkeypatch, error)
    with pytest.raises(BadInput) as caught:
        fetch("org/nowhere")
    text = str(caught.value)
    assert "asked through the proxy http://127.0.0.1:9 of HTTPS_PROXY" in text and "planted" not in text
    assert "run `hf download org/nowhere --local-dir FOLDER` on one that has it" in text


def test_an_answer_of_the_hub_is_not_the_networks_fault(monkeypatch):
    from huggingface_hub.errors import HFValidationError

    monkeypatch.setenv("SSL_CERT_FILE", "/gone")
    failing(monkeypatch, HFValidationError("no id"))
    with pytest.raises(BadInput, match=r"did not provide it \(no id\)$"):
        fetch("org/nowhere")


def test_a_folder_is_used_whatever_the_environment(monkeypatch, tiny_bert):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7890/")
    assert fetch(str(tiny_bert)) == str(tiny_bert)


def test_a_tracker_that_nobody_answers_for(monkeypatch):
    assert "without a network WANDB_MODE=offline" in trackers._not_taken("timed out")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert "(timed out; asked through the proxy http://127.0.0.1:9 of HTTPS_PROXY" in trackers._not_taken("timed out")
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7890/")
    assert "write ALL_PROXY=socks5://127.0.0.1:7890/" in trackers._not_taken("timed out")
