"""Definitions of this subject."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from data_prep.common.errors import BadInput
from data_prep.common.secrets import secret

OPENAI_URL = "https://api.openai.com/v1"
NAMES = (("OPENAI_API_KEY", "OPENAI_BASE_URL"), ("YC_OPENAI_API_KEY", "YC_OPENAI_API_BASE"))


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and the key to it. key_name: the variable that the key came from."""

    url: str
    key: str | None = field(default=None, repr=False)
    key_name: str = ""

    def __str__(self) -> str:
        return f"{self.url} ({f'key from {self.key_name}' if self.key else 'no key'})"


def endpoint(base_url: str | None = None) -> Endpoint:
    """The server to ask, from `base_url` and the environment or .env.

    A key and a base URL of one provider belong together (NAMES): the key of one is never sent to the address of the
    other. base_url takes the key of the provider whose address it is, else of the first that has one. BadInput.
    """
    known = [(key_name, secret(key_name), secret(url_name), url_name) for key_name, url_name in NAMES]
    if base_url is None:
        name, key, url, url_name = next((one for one in known if one[1] or one[2]), known[0])
        if url is None and name != NAMES[0][0]:
            raise BadInput(f"{url_name}: is not set, but {name} is; set it (environment or .env) or give --base-url")
        found = Endpoint(url or OPENAI_URL, key, name)
        where = url_name if url else "--base-url"
    else:
        same = [one for one in known if one[1] and (one[2] or "").rstrip("/") == base_url.rstrip("/")]
        name, key, *_ = next(iter(same or [one for one in known if one[1]]), known[0])
        found, where = Endpoint(base_url, key, name), "--base-url"
    _check_url(found.url, where)
    if found.key is None and found.url.rstrip("/") == OPENAI_URL:
        raise BadInput(
            f"no key for {OPENAI_URL}: put OPENAI_API_KEY into the environment or .env, or name your server: --base-url"
        )
    return found


def _check_url(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises for what is no port
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None
    if parts.username or parts.password or parts.query:
        raise BadInput(f"{where}: holds a user, password or query; the key belongs into OPENAI_API_KEY (or .env)")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput(f"{where} {url}: must look like http://localhost:8000/v1")
