"""Settings of question generation with a language model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.cluster.open import problems_of
from data_prep.common.errors import collect
from data_prep.common.files import check, check_output_file
from data_prep.common.paths import user_path
from data_prep.generation.filters import Filters
from data_prep.generation.prompt import EXAMPLE, Prompt, read_prompt
from data_prep.model_server.answer_cache import Part, read_part
from data_prep.model_server.client import Retry
from data_prep.model_server.endpoint import Pace
from data_prep.stores.base import StoreConfig


@dataclass(frozen=True, kw_only=True)
class QuestionGenerationConfig:
    """Store, model and output of one generation. No secret: the key comes from the environment or .env."""

    collection_name: str
    output_path: Path | str
    model: str
    # the store, as in StoreConfig; a Qdrant server may also be given by host and port
    db_type: str = "chroma"
    path: Path | str | None = None
    host: str | None = None
    port: int | None = None
    ssl: bool = False
    url: str | None = None
    text_field: str | None = None
    vector_name: str | None = None
    tenant: str | None = None
    database: str | None = None
    upgrade_store: bool = False
    key_field: str | None = None
    where: dict[str, Any] | None = None
    limit: int | None = None  # only the first chunks
    sample: int | None = None  # chunks drawn by the seed; a larger sample contains a smaller one
    seed: int = 0
    prompt_path: Path | str = EXAMPLE  # a file with {context} and the names of prompt_variables
    prompt_variables: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    base_url: str | None = None
    temperature: float | None = None  # None: the server's default
    timeout: float = 120.0  # seconds for one answer
    concurrency: int = 8
    requests_per_minute: int | None = None  # that the endpoint allows, all parts together; so are the tokens
    tokens_per_minute: int | None = None
    part: str | None = None  # "3/8": ask about the third of eight parts of the chunks only, and write no pairs
    join: bool = False  # write the pairs of all parts, and ask nothing
    on: str | None = None  # ask from the nodes of a Ray cluster: "ray" or "ray://HOST:PORT", see cluster/ray_workers.py
    retry: Retry = field(default_factory=Retry)
    price_in: float | None = None  # of a million tokens, as price_out
    price_out: float | None = None
    cache: Path | str | None = None  # folder of the answers; None: in the user's cache folder
    filters: Filters = field(default_factory=Filters)

    @property
    def output(self) -> Path:
        return user_path(self.output_path)

    @property
    def worker(self) -> Part | None:
        """The part that this process asks about; None: all chunks."""
        return read_part(self.part) if self.part else None

    @property
    def pace(self) -> Pace:
        """The share of one part in what the endpoint allows in a minute."""
        parts, requests, tokens = self.worker.count if self.worker else 1, *self._limits
        return Pace(requests and requests // parts, tokens and tokens / parts)

    @property
    def _limits(self) -> tuple[int | None, int | None]:
        return self.requests_per_minute, self.tokens_per_minute

    def store(self) -> StoreConfig:
        host, port, ssl, url = self.host, self.port, self.ssl, self.url
        if self.db_type == "qdrant" and host and not url:
            url = f"http{'s' if ssl else ''}://{host}" + (f":{port}" if port else "")
            host, port, ssl = None, None, False
        path = None if self.path is None else user_path(self.path)
        same = ("text_field", "vector_name", "tenant", "database", "upgrade_store", "key_field")
        more = {name: getattr(self, name) for name in same}
        return StoreConfig(self.db_type, self.collection_name, path, host, port, ssl, url, **more)

    def prompt(self) -> Prompt:
        """Reads the prompt file. BadInput lists its problems and all others of this config."""
        problems = self.store().problems() + check_output_file(self.output)
        for name in ("limit", "sample", "concurrency", "requests_per_minute", "tokens_per_minute"):
            if (value := getattr(self, name)) is not None and value < 1:
                problems.append(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        problems += self._part_problems()
        if self.limit is not None and self.sample is not None:
            problems.append("--limit and --sample: choose one")
        if not self.timeout > 0:
            problems.append(f"--timeout {self.timeout:g}: must be above 0")
        if self.temperature is not None and not self.temperature >= 0:
            problems.append(f"--temperature {self.temperature:g}: must be 0 or more")
        if (self.price_in is None) != (self.price_out is None):
            problems.append("--price-in and --price-out: give both, for a million tokens each")
        problems += [
            f"--{name.replace('_', '-')} {value:g}: must be 0 or more"
            for name in ("price_in", "price_out")
            if (value := getattr(self, name)) is not None and not value >= 0
        ]
        problems += self.filters.problems()
        prompt = collect(problems, lambda: read_prompt(user_path(self.prompt_path), self.prompt_variables))
        check(problems)
        return prompt

    def _part_problems(self) -> list[str]:
        problems: list[str] = []
        part = collect(problems, lambda: self.worker)
        problems += problems_of(1, self.on)
        if self.on and (self.part or self.join):
            problems.append(
                f"--on and --{'part' if self.part else 'join'}: choose one; --on divides and joins by itself"
            )
        if part and self.join:
            problems.append("--part and --join: choose one; join when every part has run")
        if part and 0 < (self.requests_per_minute or 0) < part.count:
            shared = f"shared by {part.count:,} parts, none could ask once a minute; use fewer parts"
            problems.append(f"--requests-per-minute {self.requests_per_minute:,}: {shared}")
        return problems
