"""Proxies, certificates, `.env` and other programs' variables: a command works, or one line says why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from data_prep.common import environment
from data_prep.common.environment import header_problems, network_client, proxy_note, read_dotenv
from data_prep.common.errors import BadInput
from data_prep.common.files import cache_folder
from data_prep.common.secrets import secret
from tests.launching import ROOT

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No proxy, certificate or key of the machine's own, in a folder without `.env`."""
    for name in (*PROXIES, *environment.NETWORK, "REQUEST_METHOD", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.chdir(tmp_path)


def made() -> None:
    import httpx

    with network_client("https://example.org"):
        httpx.Client().close()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:7890/", "write ALL_PROXY=socks5://127.0.0.1:7890/, or unset ALL_PROXY"),
        ("all_proxy", "socks://me:word@h:1", "all_proxy=socks://h:1: no proxy has the scheme 'socks'"),
        ("HTTPS_PROXY", "socks4://h:1", "proxies of the scheme 'socks4' are not supported"),
        ("HTTP_PROXY", "ftp://h:1", "proxies of the scheme 'ftp' are not supported"),
        ("HTTP_PROXY", "http://h:port", "HTTP_PROXY=http://h:port: is no address of a proxy"),
        ("HTTP_PROXY", "http://me:w#word@h:1", "HTTP_PROXY=http://h:1: is no address of a proxy"),
        ("HTTP_PROXY", '"http://h:1"', "holds a quote, space or line break"),
        ("HTTPS_PROXY", "http://h:1\r", "holds a quote, space or line break"),
        ("HTTPS_PROXY", " http://h:1", "holds a quote, space or line break"),
        ("SSL_CERT_FILE", "/gone", "SSL_CERT_FILE=/gone: cannot be read (No such file or directory); name a file"),
        ("SSL_CERT_FILE", "/", "SSL_CERT_FILE=/: cannot be read (Is a directory)"),
        ("SSL_CERT_FILE", __file__, "holds no certificate; name a file of certificates in PEM form"),
        ("SSL_CERT_DIR", "/gone:/gone2", "SSL_CERT_DIR=/gone:/gone2: no such folder"),
        ("SSL_CERT_DIR", "9" * 5000, "SSL_CERT_DIR=9999"),  # longer than a name may be
        ("SSLKEYLOGFILE", "/gone/keys", "SSLKEYLOGFILE=/gone/keys: cannot be written (No such file or directory)"),
    ],
)
def test_a_variable_that_forbids_every_client_is_named_with_its_mend(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as caught:
        made()
    assert said in str(caught.value) and "unset" in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")


def test_a_language_model_and_a_hub_are_refused_before_any_work(monkeypatch):
    pytest.importorskip("openai")
    from data_prep.generation.client import Model
    from data_prep.model_server.client import Retry
    from data_prep.model_server.endpoint import Endpoint, endpoint
    from trainer.exporting.hub import Hub

    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7890/")
    monkeypatch.setenv("HF_TOKEN", "t")
    options = {"temperature": None, "response_format": {}, "timeout": 1.0, "retry": Retry()}
    with pytest.raises(BadInput, match="write ALL_PROXY=socks5://127.0.0.1:7890/"):
        Model(Endpoint("http://127.0.0.1:9/v1"), "m", **options)
    with pytest.raises(BadInput, match="write ALL_PROXY=socks5://127.0.0.1:7890/"):
        Hub("owner/name")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Name: é")
    with pytest.raises(BadInput, match="OPENAI_CUSTOM_HEADERS: holds characters"):
        endpoint("http://127.0.0.1:9/v1")


def test_socks_needs_its_package(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:7890")
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(BadInput, match="needs the package socksio; run pip install socksio, or unset ALL_PROXY"):
        made()


@pytest.mark.parametrize("entry", ["[::1]", "fd00::/8", "http://x:y"])
def test_entries_of_no_proxy_that_the_client_cannot_read(monkeypatch, entry):
    monkeypatch.setenv("NO_PROXY", f"localhost,{entry}")
    monkeypatch.setenv("HTTP_PROXY", "http://h:1")
    with pytest.raises(BadInput) as caught:
        made()
    assert str(caught.value).startswith(f"NO_PROXY: {entry!r} is none of these")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"HTTP_PROXY": "h:3128", "https_proxy": "http://me:word@h:1/", "NO_PROXY": "localhost,10.0.0.0/8,.x.org,::1"},
        {"ALL_PROXY": "socks://h:1", "NO_PROXY": "*"},  # httpx reads none of them
        {"ALL_PROXY": "", "SSL_CERT_FILE": ""},
        {"SSL_CERT_DIR": "/gone:/"},
        {"FTP_PROXY": "ftp://h:port"},
    ],
)
def test_what_works_is_not_refused(monkeypatch, values):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    made()


def test_only_errors_of_the_environment_are_explained(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://h:1")
    with pytest.raises(ValueError, match="^mine$") as caught, network_client():
        raise ValueError("mine")
    assert not isinstance(caught.value, BadInput)
    with pytest.raises(BadInput, match="with what HTTP_PROXY say; correct or unset"), network_client():
        raise OSError(5, "unexplained")


def test_a_server_behind_a_proxy_is_said_to_be_so(monkeypatch):
    assert proxy_note("http://h:1") == ""
    monkeypatch.setenv("http_proxy", "http://me:word@p:1")
    monkeypatch.setenv("NO_PROXY", "localhost,.example.org,[::1]")
    assert "through the proxy http://p:1 of http_proxy; NO_PROXY" in proxy_note("http://ours:8000/v1")
    for url in ("http://localhost:1/v1", "http://a.example.org", "http://[::1]:80/", "https://ours"):
        assert proxy_note(url) == "", url


def test_an_https_server_that_failed_without_any_authority_is_said_to_be_so(monkeypatch):
    monkeypatch.setenv("SSL_CERT_DIR", "/gone")
    assert "SSL_CERT_DIR=/gone: no such folder" in proxy_note("https://h") and not proxy_note("http://h")


KEY = "OPENAI_API_KEY"


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfOPENAI_API_KEY=k\n", b"# caf\xc3\xa9\r\nexport OPENAI_API_KEY='k'\r\n"])
def test_keys_of_a_dotenv_with_a_mark_comment_or_export_are_found(data):
    Path(".env").write_bytes(data)
    assert secret(KEY) == "k"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"A=1\n# caf\xe9\nOPENAI_API_KEY=k\n",
            "/.env:2: byte 0xe9 is not UTF-8; save it as UTF-8 lines of NAME=value",
        ),
        ("OPENAI_API_KEY=k\r\n".encode("utf-16"), "/.env: is in UTF-16, as PowerShell writes it"),
        ("OPENAI_API_KEY=k\r\n".encode("utf-16-be"), "/.env: is in UTF-16, as PowerShell writes it"),
        (b"OPENAI_API_KEY='two words'\n", "/.env: OPENAI_API_KEY: holds a space"),
        (b"A=1\nOPENAI_API_KEY sk-abc\n", "/.env:2: OPENAI_API_KEY has no value there; write OPENAI_API_KEY=value"),
        (b"\nexport OPENAI_API_KEY\n", "/.env:2: OPENAI_API_KEY has no value there"),
        (b"OPENAI_API_KEY: sk-abc\n", "/.env:1: OPENAI_API_KEY has no value there"),
    ],
)
def test_a_dotenv_that_cannot_be_read_is_named_with_its_line(data, said):
    Path(".env").write_bytes(data)
    with pytest.raises(BadInput) as caught:
        secret(KEY)
    assert said in str(caught.value)


def test_a_folder_named_dotenv_is_none():
    Path(".env").mkdir()  # python -m venv .env
    assert secret(KEY) is None
    with pytest.raises(BadInput, match="cannot be read"):
        read_dotenv(Path(".env"))


def test_what_no_header_can_carry(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-é")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-One: 1\r\nX-Two: 2")
    assert header_problems("OPENAI_ORG_ID", "OPENAI_CUSTOM_HEADERS", "OPENAI_PROJECT_ID") == [
        "OPENAI_ORG_ID: holds characters that no header can carry (1 of its lines); set it again"
    ]


def test_cache_folders_without_a_home_or_below_a_file(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EMBEDFLEET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(BadInput, match="HOME: is not set"):
        cache_folder("crawl")
    Path("file").touch()
    monkeypatch.setenv("EMBEDFLEET_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(BadInput, match="EMBEDFLEET_CACHE=.* is a file; name a folder"):
        cache_folder("crawl")


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_prep", *arguments]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)


CRAWL = ("crawl", "--source", "http://127.0.0.1:9/g.html", "--output", "g.csv", "--delay", "0")
GENERATE = ("generate", "--offline", "--path", "store", "--collection", "docs", "--output", "pairs.jsonl")
QDRANT = ("generate", "--offline", "--store", "qdrant", "--url", "http://127.0.0.1:9", "--collection", "docs")
CHROMA = ("generate", "--offline", "--host", "127.0.0.1", "--port", "9", "--collection", "docs")


@pytest.mark.parametrize(
    ("arguments", "variable", "value"),
    [
        (CRAWL, "ALL_PROXY", "socks://127.0.0.1:7890/"),
        (CRAWL, "SSL_CERT_FILE", "/gone"),
        ((*QDRANT, "--output", "p.jsonl"), "ALL_PROXY", "socks://127.0.0.1:7890/"),
        ((*CHROMA, "--output", "p.jsonl"), "SSL_CERT_FILE", "/gone"),
        (GENERATE, "MIGRATIONS", "true"),
        (GENERATE, "CHROMA_DB_IMPL", "duckdb+parquet"),
        (GENERATE, "CHROMA_SERVER_CORS_ALLOW_ORIGINS", "*"),
    ],
)
def test_commands_name_the_variable_and_end_with_2(arguments, variable, value):
    pytest.importorskip("chromadb"), pytest.importorskip("qdrant_client")
    done = run(*arguments, **{variable: value})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert variable in done.stderr and "unset" in done.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"# caf\xe9\n", ".env:1: byte 0xe9 is not UTF-8; save it as UTF-8 lines of NAME=value (chromadb reads it"),
        (b"A=1\nallow_reset=perhaps\n", ".env: allow_reset: chromadb reads this variable too and cannot"),
        (b"IS_PERSISTENT=2\n", ".env: IS_PERSISTENT: chromadb reads this variable too and cannot"),
    ],
)
def test_a_dotenv_that_chromadb_cannot_read_is_named(data, said):
    pytest.importorskip("chromadb")
    Path(".env").write_bytes(data)
    done = run(*GENERATE)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert said in done.stderr and "in a" in done.stderr


def test_the_dry_run_needs_no_proxy_and_no_certificates():
    done = run("crawl", "--dry-run", "--output", "g.csv", ALL_PROXY="socks://h:1", SSL_CERT_FILE="/gone")
    assert done.returncode == 0, done.stderr
