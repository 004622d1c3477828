"""The server to ask and the key to it: whose key goes where, and what is meant by a wrong address."""

import pytest

from data_prep.common.errors import BadInput
from data_prep.model_server.endpoint import endpoint, neighbours, other_key
from tests.language_model import KEY


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """No key and no .env of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "YC_OPENAI_API_KEY", "YC_OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)


OURS, OPEN, YC = "http://ours:1/v1", "https://open.example/v1", "https://yc.example/v1"


@pytest.mark.parametrize(
    "environment, base_url, url, key",
    [
        ({"OPENAI_API_KEY": "o"}, None, "https://api.openai.com/v1", "o"),
        ({"OPENAI_API_KEY": "o", "OPENAI_BASE_URL": OPEN}, None, OPEN, "o"),
        ({"YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, None, YC, "y"),
        ({"OPENAI_API_KEY": "o", "YC_OPENAI_API_BASE": YC}, None, "https://api.openai.com/v1", "o"),
        ({"OPENAI_BASE_URL": OURS, "YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, None, OURS, None),
        ({"OPENAI_API_KEY": "o", "YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, f"{YC}/", f"{YC}/", "y"),
        ({"OPENAI_API_KEY": "o", "YC_OPENAI_API_KEY": "y", "YC_OPENAI_API_BASE": YC}, OURS, OURS, "o"),
        ({}, OURS, OURS, None),
    ],
)
def test_a_key_goes_to_its_own_address_only(monkeypatch, environment, base_url, url, key):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = endpoint(base_url)
    assert (found.url, found.key) == (url, key)
    assert key is None or repr(key) not in repr(found)


def test_keys_and_address_from_dotenv(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text(f'OPENAI_API_KEY="{KEY}"\nOPENAI_BASE_URL={OURS}\n')
    found = endpoint()
    assert (found.url, found.key, str(found)) == (OURS, KEY, f"{OURS} (key from OPENAI_API_KEY)")


@pytest.mark.parametrize(
    "environment, base_url, reason",
    [
        ({}, None, "no key for https://api.openai.com/v1: put OPENAI_API_KEY into the environment or .env"),
        ({"YC_OPENAI_API_KEY": "y"}, None, "YC_OPENAI_API_BASE: is not set, but YC_OPENAI_API_KEY is"),
        ({"OPENAI_BASE_URL": "ours:1"}, None, "OPENAI_BASE_URL ours:1: must look like http://localhost:8000/v1"),
        ({}, "http://me:word@ours:1/v1", "--base-url: holds a user, password or query; the key belongs into"),
        ({}, "http://ours:port/v1", "--base-url: Port could not be cast"),
        ({"OPENAI_API_KEY": "two words"}, OURS, "OPENAI_API_KEY: holds a space"),
    ],
)
def test_what_is_wrong_with_key_or_address(monkeypatch, environment, base_url, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as error:
        endpoint(base_url)
    assert reason in str(error.value)
    assert "word" not in str(error.value).replace("password", "")


@pytest.mark.parametrize(
    "url, meant",
    [
        ("http://ours:1", "http://ours:1/v1"),
        ("http://ours:1/v1/chat/completions", "http://ours:1/v1"),
        ("http://ours:1/v1/models/", "http://ours:1/v1"),
        ("http://ours:1/chat", "http://ours:1/v1"),
        ("http://ours:1/api/generate", "http://ours:1/v1"),
        ("https://open.example", "https://open.example/api/v1"),
        ("https://open.example/", "https://open.example/openai/v1"),
    ],
)
def test_the_addresses_beside_a_wrong_one(url, meant):
    assert meant in neighbours(url)
    assert url.rstrip("/") not in neighbours(url)
    assert all(other.startswith(url[: url.index("/", 8) if "/" in url[8:] else None]) for other in neighbours(url))


@pytest.mark.parametrize(
    "more, problem",
    [
        ({"YC_OPENAI_API_BASE": YC}, None),
        ({}, f"OPENAI_API_KEY would go to {YC} there, not that of YC_OPENAI_API_KEY: YC_OPENAI_API_BASE is not set"),
        ({"YC_OPENAI_API_BASE": OURS}, "YC_OPENAI_API_BASE has another value there"),
        ({"YC_OPENAI_API_KEY": ""}, "YC_OPENAI_API_KEY is not set there"),
    ],
)
def test_a_node_that_would_use_another_key_says_what_is_missing(monkeypatch, more, problem):
    for name, value in ({"OPENAI_API_KEY": "o", "YC_OPENAI_API_KEY": "y"} | more).items():
        monkeypatch.setenv(name, value)
    found = other_key(YC, "YC_OPENAI_API_KEY")
    assert problem in found if problem else found is None
