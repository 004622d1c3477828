"""Target: the environment, every variable that we read with odd values, and `.env`."""

import os
from pathlib import Path
from unittest.mock import patch

import httpx
from hypothesis import strategies as st

from data_prep.common.environment import network_client, proxy_note
from data_prep.common.errors import KnownError
from data_prep.common.files import cache_folder
from data_prep.common.secrets import secret
from data_prep.model_server.endpoint import endpoint, neighbours
from launch.machine import this_machine
from launch.machine_checks import environment_findings, machine_findings
from tests.fuzzing.case import Case, Finding, command
from tests.fuzzing.mutations import Draw
from trainer.distributed import launcher_claims

TARGET = "environments"
LAUNCHER = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}  # fmt: skip
VARIABLES = {
    **LAUNCHER,
    "SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "2", "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "bf16", "PET_NNODES": "1:2",
    "PET_NODE_RANK": "0",
    "PET_MASTER_ADDR": "localhost", "PET_RDZV_ENDPOINT": "localhost:29400", "PET_NPROC_PER_NODE": "2",
    "HF_HOME": "~/hf", "HF_ENDPOINT": "https://hub", "CUDA_VISIBLE_DEVICES": "0,1", "CXX": "g++",
    "HTTP_PROXY": "http://proxy:3128", "https_proxy": "http://u:p@proxy:3128", "ALL_PROXY": "socks5://127.0.0.1:7890",
    "NO_PROXY": "localhost,.example.org,10.0.0.0/8,::1", "SSL_CERT_FILE": "certs.pem", "SSL_CERT_DIR": "certs",
    "SSLKEYLOGFILE": "keys.log",
    "OPENAI_API_KEY": "sk-abcdefghijklmnop", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "YC_OPENAI_API_KEY": "k",
    "YC_OPENAI_API_BASE": "http://h/v1",
    "OPENAI_ORG_ID": "o", "OPENAI_PROJECT_ID": "p", "OPENAI_CUSTOM_HEADERS": "X-A: b\nX-B: c",
    "EMBEDFLEET_CACHE": "cache", "XDG_CACHE_HOME": "xdg", "HOME": "/root", "TMPDIR": "tmp", "COLUMNS": "80",
    "LANG": "C", "TZ": "UTC",
}  # fmt: skip
PROXIES = [
    "socks://127.0.0.1:7890/", "proxy", "http://", "http://[", "http://a:b#c@h:1", "HTTP://H:99999", "ftp://h",
    "'http://h'", "http://h:port", "//h", "direct://", "http://h\n",
]  # fmt: skip
DOTENV = "# settings\nOPENAI_API_KEY=sk-abc\nexport OPENAI_BASE_URL='http://127.0.0.1:9/v1'\nYC_OPENAI_API_KEY=\"k\"\n"
URLS = ("https://example.org/x", "http://localhost:8000/v1")


@st.composite
def cases(draw) -> Case:
    d = Draw(draw)
    names = [*LAUNCHER] if d.chance(3) else []
    names += [d.pick([*VARIABLES]) for _ in range(1 + d.number(0, 3))]
    variables = {}
    for name in names:
        value = VARIABLES[name]
        for _ in d.times(2):
            odd = [
                d.word(),
                d.damaged(value),
                f" {value} ",
                f"{value}\n",
                "",
                f"'{value}'",
                value.upper(),
                d.pick(PROXIES),
                "9" * 4400,
            ]
            value = d.pick(odd)
        variables[name] = _as_in_environ(value)
    text = DOTENV
    for _ in d.times(2):
        text = d.damaged(text)
    files = {".env": d.bytes_of(text)} if d.chance(2) else {}
    return Case(
        TARGET,
        {"variables": variables, "steps": sorted({d.pick([*STEPS]) for _ in range(2)})},
        files | {"rows.jsonl": b'{"query": "q", "positive": "p"}\n'},
    )


def _as_in_environ(value: str) -> str:
    """Returns the value as os.environ can hold it: without NUL, bytes outside UTF-8 as lone surrogates."""
    value = value.replace("\0", "")
    try:
        return os.fsdecode(os.fsencode(value))
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode()


def check(case: Case, folder: Path) -> None:
    kept = {
        name: value for name, value in os.environ.items() if name not in VARIABLES and name.upper() not in VARIABLES
    }
    environ = {"HOME": str(folder), "PATH": kept.get("PATH", "")} | kept | case.data["variables"]
    with patch.dict(os.environ, environ, clear=True):
        for step in case.data["steps"]:
            try:
                STEPS[step](environ)
            except KnownError as error:
                if not str(error).strip():
                    raise Finding("an error without words") from error


def launcher(environ: dict[str, str]) -> None:
    launcher_claims.check_shell(False, True, environ)
    launcher_claims.of_torchrun(environ)
    (
        launcher_claims.rank(),
        launcher_claims.world_size(),
        launcher_claims.local_world_size(),
        launcher_claims.uses_deepspeed(),
    )
    launcher_claims.check_shell(True, False, environ)
    launcher_claims.check_launcher(environ)
    launcher_claims.claims("ddp", 2, environ)
    launcher_claims.fewer_nodes(1, environ)
    launcher_claims.most_nodes(["torchrun", "-m", "trainer"], environ)


def network(environ: dict[str, str]) -> None:
    for url in URLS:
        proxy_note(url)
    with network_client(*URLS):
        httpx.Client().close()
    with network_client(*URLS):
        httpx.AsyncClient()


def places(environ: dict[str, str]) -> None:
    launcher_claims.accelerate_default(environ)
    cache_folder("x")


def keys(environ: dict[str, str]) -> None:
    secret("OPENAI_API_KEY")
    server = endpoint()
    shown = server.key and len(server.key) > 8 and server.key in str(server)  # a shorter one may be a part of a word
    if server.key and (shown or not server.key.isascii()):
        raise Finding("a key that no header can carry, or that is shown", str(server))
    neighbours(server.url)
    endpoint("http://localhost:1/v1")


def machine(environ: dict[str, str]) -> None:
    environment_findings(environ)
    with patch("socket.gethostbyname", return_value="127.0.0.1"):  # no name server is asked
        machine_findings(this_machine(), None, "model", environ)


def commands(environ: dict[str, str]) -> None:
    command("inspect", "rows.jsonl", "--json")
    command("compose", "rows.jsonl", "--output", "out.jsonl")


STEPS = {
    "launcher": launcher, "network": network, "places": places, "keys": keys, "machine": machine,
    "commands": commands,
}  # fmt: skip
