"""The environment as input: what of it keeps a client or a library from starting, named with the variable and the mend.

Proxies and certificates are read by httpx when a client is made, other settings by libraries when they are imported.
Nothing is refused in advance: only what fails is explained.
"""

import os
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from data_prep.common.errors import BadInput, KnownError

SCHEMES = ("http", "https", "socks5", "socks5h")
NETWORK = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
DOTENV = ".env"
_EXAMPLE = "http://proxy.example.org:3128"


@contextmanager
def network_client(*urls: str) -> Iterator[None]:
    """A block that only makes a client. BadInput if proxies or certificates of the environment forbid it.

    urls: the servers that the client will ask.
    """
    if problem := _no_authorities(urls):
        raise BadInput(problem)
    try:
        yield
    except KnownError:
        raise
    except Exception as error:
        if not isinstance(error, (ValueError, ImportError, OSError)) and type(error).__name__ != "InvalidURL":
            raise
        if problems := _network_problems() or _suspects(error):
            raise BadInput(problems) from None
        raise


def client_problems(*urls: str) -> list[str]:
    """Returns what of the environment keeps a client for these servers from being made: why a library's own failed."""
    import httpx

    try:
        with network_client(*urls):
            httpx.Client().close()
    except BadInput as error:
        return error.problems
    return []


def proxy_note(url: str) -> str:
    """Returns what the environment does to requests to this server, for the message about a failed one, or ""."""
    no_authorities = _no_authorities([url])
    return _through_proxy(url) + (f" ({no_authorities})" if no_authorities else "")


def _through_proxy(url: str) -> str:
    proxies, server = getproxies(), urlsplit(url)
    kind = next((kind for kind in (server.scheme.lower(), "all") if proxies.get(kind)), None)
    if kind is None or _excluded(server.hostname or "", proxies.get("no", "")):
        return ""
    name = _variable(f"{kind}_proxy")
    return f" (asked through the proxy {_shown(proxies[kind])} of {name}; NO_PROXY names hosts to ask without it)"


def _excluded(host: str, excluded: str) -> bool:
    """Returns True if NO_PROXY leaves out this host, by its name or the end of it."""
    entries = [entry.strip().lower().strip("[]") for entry in excluded.split(",") if entry.strip()]
    return any(entry in ("*", host) or host.endswith(f".{entry.lstrip('.*')}") for entry in entries)


def _variable(name: str) -> str:
    """Returns the name as it is spelt in the environment: proxies are set in small or capital letters."""
    spelt = [one for one in (name.lower(), name.upper()) if os.environ.get(one)]
    return spelt[0] if spelt else f"the system's setting for {name.upper()}"


def _shown(value: str) -> str:
    """Returns the address of a proxy without its user and password."""
    return re.sub(r"^(\s*\S*?://)?.*@", r"\1", value, flags=re.S).strip()


def _network_problems() -> list[str]:
    """Returns what is wrong with proxies and certificates."""
    proxies, problems = getproxies(), []
    excluded = [entry.strip() for entry in proxies.get("no", "").split(",") if entry.strip()]
    if "*" not in excluded:  # then no proxy is used
        for kind in ("http", "https", "all"):
            if (value := proxies.get(kind)) and (reason := _proxy_problem(value, name := _variable(f"{kind}_proxy"))):
                problems.append(f"{name}={_shown(value)}: {reason}, or unset {name}")
        problems += _exclusion_problems(excluded)
    return problems + list(_certificate_problems())


def _suspects(error: Exception) -> list[str]:
    """Returns the variables that may be the cause of an error about proxies or certificates that none explains."""
    given = [name for name in NETWORK if os.environ.get(name) or os.environ.get(name.lower())]
    if not given or not (isinstance(error, (OSError, ImportError)) or "prox" in str(error).lower()):
        return []
    return [f"no client of the network can be made with what {', '.join(given)} say; correct or unset them"]


def _proxy_problem(value: str, name: str) -> str:
    """Returns what is wrong with the address of a proxy, and the mend, or an empty string."""
    import httpx

    text = value if "://" in value else f"http://{value}"
    scheme, _, rest = text.partition("://")
    if not value.isprintable() or value.strip(" '\"") != value:
        return "holds a quote, space or line break that belongs to no address; set it again without"
    if scheme.lower() == "socks":
        return f"no proxy has the scheme 'socks'; write {name}=socks5://{_shown(rest)}"
    if scheme.lower() not in SCHEMES:
        return f"proxies of the scheme {scheme!r} are not supported, only {', '.join(SCHEMES)}; name one of them"
    if scheme.lower().startswith("socks") and find_spec("socksio") is None:
        return "a SOCKS proxy needs the package socksio; run pip install socksio"
    try:
        host = httpx.Proxy(text).url.host
    except (ValueError, httpx.InvalidURL):  # its words may hold a part of the password
        host = ""
    if host:
        return ""
    return f"is no address of a proxy; write {_EXAMPLE} (in a user or password %23 for #, %2F for /, %40 for @)"


def _exclusion_problems(excluded: list[str]) -> Iterator[str]:
    """Yields a problem for each entry of NO_PROXY that httpx cannot read, by the patterns that it makes of them."""
    import ipaddress

    import httpx

    for entry in excluded:
        try:
            ipaddress.ip_address(entry.split("/")[0])
            pattern = f"all://[{entry}]" if ":" in entry else f"all://{entry}"
        except ValueError:
            pattern = entry if "://" in entry else f"all://*{entry}"
        try:
            httpx.URL(pattern)
        except httpx.InvalidURL:
            mend = "write hosts, ends of host names and addresses, parted by commas (::1 without brackets or /length)"
            yield f"{_variable('no_proxy')}: {entry!r} is none of these; {mend}"


def _certificate_problems() -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file := os.environ.get("SSL_CERT_FILE"):
        try:
            context.load_verify_locations(cafile=file)
        except OSError as error:
            none = isinstance(error, ssl.SSLError)
            reason = "holds no certificate" if none else f"cannot be read ({error.strerror})"
            yield f"SSL_CERT_FILE={file}: {reason}; name a file of certificates in PEM form, or unset it"
    if file := os.environ.get("SSLKEYLOGFILE"):
        try:
            context.keylog_filename = file
        except OSError as error:
            yield f"SSLKEYLOGFILE={file}: cannot be written ({error.strerror}); name another file, or unset it"


def _no_authorities(urls: Iterable[str]) -> str:
    """Returns the problem of https servers where SSL_CERT_DIR names no folder, so that no certificate is trusted."""
    folders = os.environ.get("SSL_CERT_DIR")
    if not folders or os.environ.get("SSL_CERT_FILE") or not any(url.lower().startswith("https:") for url in urls):
        return ""
    if any(os.path.isdir(folder) for folder in folders.split(os.pathsep)):
        return ""
    return f"SSL_CERT_DIR={folders}: no such folder, so that no server's certificate is trusted; correct or unset it"


def header_problems(*names: str) -> list[str]:
    """Returns the variables whose value a library sends as headers and no header can carry. Values are not shown."""
    problems = []
    for name in names:
        lines = os.environ.get(name, "").split("\n")
        if wrong := [line for line in lines if not (line.strip().isascii() and line.strip().isprintable())]:
            problems.append(
                f"{name}: holds characters that no header can carry ({len(wrong)} of its lines); set it again"
            )
    return problems


def read_dotenv(file: Path, wanted: str = "") -> dict[str, str | None]:
    """Returns the variables of a `.env`. BadInput, naming the line, for a file that is no UTF-8 text.

    wanted: the variable that is looked for. A line that begins with it and has no value is BadInput too.
    """
    from dotenv import dotenv_values

    text = _text_of(file)
    values = dotenv_values(stream=StringIO(text))
    if wanted and values.get(wanted) is None:
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*(?:export\s+|set\s+)?{wanted}(?!\w|\s*=\s*$)", line):
                raise BadInput(
                    f"{file}:{number}: {wanted} has no value there; write {wanted}=value on a line of its own"
                )
    return values


def _text_of(file: Path, reader: str = "") -> str:
    mend = "save it as UTF-8 lines of NAME=value"
    mend += f" ({reader} reads it from the working folder), or run the command in another folder" if reader else ""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); {mend}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data:
        raise BadInput(f"{file}: is in UTF-16, as PowerShell writes it, or no text; {mend}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{file}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; {mend}") from None


@contextmanager
def settings_read_by(library: str) -> Iterator[None]:
    """A block in which a library reads its settings, by pydantic, from the environment and the working folder's `.env`.

    BadInput names the variable that it cannot read; such a name often belongs to another program.
    """
    file = Path(DOTENV)
    try:
        yield
    except KnownError:
        raise
    except (ValueError, PermissionError) as error:
        fields = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()] if _checked(error) else []
        if match := re.search(r'for field "(\w+)"', str(error)):
            fields.append((match[1], "it is no JSON"))
        if not fields:
            if os.path.isfile(file):
                _text_of(file.absolute(), library)  # explains a file that cannot be read
            raise
        raise BadInput([_read_too(name, reason, library, file) for name, reason in fields]) from None


def _checked(error: Exception) -> bool:
    return type(error).__name__ == "ValidationError"


def _read_too(field: str, reason: str, library: str, file: Path) -> str:
    name = next((name for name in os.environ if name.lower() == field.lower()), None)
    if name is not None:
        return (
            f"{name}: {library} reads this variable too and cannot ({reason}); unset it for this command: env -u {name}"
        )
    values = read_dotenv(file.absolute()) if os.path.isfile(file) else {}
    name = next((name for name in values if name.lower() == field.lower()), field.upper())
    mend = f"rename it, or run the command in a folder without this {DOTENV}"
    return f"{file.absolute()}: {name}: {library} reads this variable too and cannot ({reason}); {mend}"
