"""The server to ask, the key to it (from flags, the environment or .env), and the pace that it allows."""

import re
import time
from dataclasses import dataclass, field

from data_prep.common.environment import header_problems
from data_prep.common.errors import BadInput, Failed
from data_prep.common.files import check
from data_prep.common.secrets import secret, url_problem

OPENAI_URL = "https://api.openai.com/v1"
NAMES = (("OPENAI_API_KEY", "OPENAI_BASE_URL"), ("YC_OPENAI_API_KEY", "YC_OPENAI_API_BASE"))


@dataclass(frozen=True)
class Endpoint:
    """Address of a server and the key to it."""

    url: str
    key: str | None = field(default=None, repr=False)
    key_name: str = ""  # environment variable of the key
    flag: str = "--base-url"  # that names the address, for messages

    def __str__(self) -> str:
        return f"{self.url} ({f'key from {self.key_name}' if self.key else 'no key'})"


def endpoint(base_url: str | None = None, flag: str = "--base-url") -> Endpoint:
    """Returns the server to ask, from `base_url` and the environment or .env.

    The key and the base URL of one provider belong together (NAMES): a key is never sent to another provider's
    address. base_url takes the key of the provider with this address, else the first key. flag: that gave base_url,
    for messages. Raises BadInput.
    """
    check(header_problems("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"))
    known = [(key_name, secret(key_name), secret(url_name), url_name) for key_name, url_name in NAMES]
    if base_url is None:
        name, key, url, url_name = next((one for one in known if one[1] or one[2]), known[0])
        if url is None and name != NAMES[0][0]:
            raise BadInput(f"{url_name}: is not set, but {name} is; set it (environment or .env) or give {flag}")
        server = Endpoint(url or OPENAI_URL, key, name, flag)
        where = url_name if url else flag
    else:
        same = [one for one in known if one[1] and (one[2] or "").rstrip("/") == base_url.rstrip("/")]
        name, key, *_ = next(iter(same or [one for one in known if one[1]]), known[0])
        server, where = Endpoint(base_url, key, name, flag), flag
    refusal = "holds a user, password or query; the key belongs into OPENAI_API_KEY (or .env)"
    if problem := url_problem(server.url, where, "http://localhost:8000/v1", refusal, query=False):
        raise BadInput(problem)
    if server.key is None and server.url.rstrip("/") == OPENAI_URL:
        raise BadInput(
            f"no key for {OPENAI_URL}: put OPENAI_API_KEY into the environment or .env, or name your server: {flag}"
        )
    return server


def other_key(base_url: str, wanted: str) -> str | None:
    """Returns why `endpoint` takes another key for this address than that of the variable `wanted`; None: it does not.
    The environment is that of a cluster's node."""
    if secret(wanted) is None:
        return f"{wanted} is not set there"
    used = endpoint(base_url).key_name
    if used == wanted:
        return None
    url_name = dict(NAMES)[wanted]
    state = "has another value" if secret(url_name) else "is not set"
    return f"the key of {used} would go to {base_url} there, not that of {wanted}: {url_name} {state} there"


def neighbours(url: str) -> list[str]:
    """Returns the addresses that people mean by this one: without a call's path, and with the version that it lacks."""
    root = re.sub(r"/(?:chat/completions|completions|responses|models|embeddings)$", "", url.rstrip("/"))
    root = re.sub(r"/chat$", "", root)
    host = re.match(r"[a-z]+://[^/]+", root, re.IGNORECASE)
    others = [root, f"{root}/v1", *([f"{host[0]}/v1"] if host else []), f"{root}/api/v1", f"{root}/openai/v1"]
    return [other for other in dict.fromkeys(others) if other != url.rstrip("/")]


MINUTE = 60.0  # seconds


class Pace:
    """Spreads calls evenly, so that no minute has more requests, or more tokens, than the endpoint allows.

    - Calls are at least MINUTE / requests seconds apart, and the first one waits as long: a process that is killed and
      started again keeps the limit without knowing what the one before it sent.
    - The tokens of a call are known after its answer. Until then it counts as the mean of all answers so far; later
      calls make up the difference. So the limit is kept to within the calls under way.
    """

    def __init__(self, requests: int | None = None, tokens: float | None = None):
        """requests, tokens: most in a minute; None: no limit."""
        self._gap = MINUTE / requests if requests else 0.0  # seconds between calls
        self._of_token = MINUTE / tokens if tokens else 0.0  # seconds that a token takes
        self._next_call = time.monotonic() + self._gap
        self._tokens_paid = time.monotonic()  # when the tokens of all calls so far fit below the limit
        self._answers = self._tokens = 0
        self._uncounted = False

    def claim(self) -> tuple[float, float]:
        """Takes the next turn. Returns the seconds until then, and the tokens that it counts as."""
        if self._uncounted and self._of_token:
            raise Failed(
                "--tokens-per-minute: the server does not count tokens; leave the limit out, or limit requests"
            )
        now, tokens = time.monotonic(), self._tokens / self._answers if self._answers else 0.0
        turn = max(now, self._next_call, self._tokens_paid)
        self._next_call = turn + self._gap
        self._tokens_paid = turn + tokens * self._of_token
        return turn - now, tokens

    def count(self, claimed: float, tokens: int | None) -> None:
        """Counts the tokens of an answer, whose turn counted as `claimed`. None: the server does not count."""
        if tokens is None:
            self._uncounted = True
            return
        self._answers += 1
        self._tokens += tokens
        self._tokens_paid += (tokens - claimed) * self._of_token
