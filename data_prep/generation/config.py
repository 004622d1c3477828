"""Definitions of this subject."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import check, check_output_file
from data_prep.generation.client import Retry
from data_prep.generation.filters import Filters
from data_prep.generation.prompt import EXAMPLE, Prompt, read_prompt
from data_prep.stores.base import StoreConfig


@dataclass(frozen=True, kw_only=True)
class QuestionGenerationConfig:
    """What to ask about, whom, and where the pairs go. No secret: the key comes from the environment or .env.

    collection_name, db_type, path, host, port, ssl, url, text_field, vector_name, where: the store, as in StoreConfig;
    a Qdrant server may also be given by host and port. limit: only the first so many chunks; sample: so many drawn by
    the seed, a larger sample containing the smaller. prompt_path: a file with {context} and the names of
    prompt_variables. temperature: None leaves it to the server. timeout: seconds for one answer. price_in, price_out:
    of a million tokens. cache: folder of the answers (default: the user's cache folder).
    """

    collection_name: str
    output_path: Path | str
    model: str
    db_type: str = "chroma"
    path: Path | str | None = None
    host: str | None = None
    port: int | None = None
    ssl: bool = False
    url: str | None = None
    text_field: str | None = None
    vector_name: str | None = None
    where: dict[str, Any] | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    prompt_path: Path | str = EXAMPLE
    prompt_variables: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    base_url: str | None = None
    temperature: float | None = None
    timeout: float = 120.0
    concurrency: int = 8
    retry: Retry = field(default_factory=Retry)
    price_in: float | None = None
    price_out: float | None = None
    cache: Path | str | None = None
    filters: Filters = field(default_factory=Filters)

    @property
    def output(self) -> Path:
        return Path(self.output_path)

    def store(self) -> StoreConfig:
        host, port, ssl, url = self.host, self.port, self.ssl, self.url
        if self.db_type == "qdrant" and host and not url:
            url = f"http{'s' if ssl else ''}://{host}:{port or 6333}"
            host, port, ssl = None, None, False
        path = None if self.path is None else Path(self.path)
        return StoreConfig(
            self.db_type, self.collection_name, path, host, port, ssl, url, self.text_field, self.vector_name
        )

    def prompt(self) -> Prompt:
        """The prompt file, read. BadInput lists its problems and every other of this config."""
        found = self.store().problems() + check_output_file(self.output)
        for name in ("limit", "sample", "concurrency"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"--{name} {value}: must be 1 or more")
        if self.limit is not None and self.sample is not None:
            found.append("--limit and --sample: choose one")
        if not self.timeout > 0:
            found.append(f"--timeout {self.timeout:g}: must be above 0")
        if self.temperature is not None and not self.temperature >= 0:
            found.append(f"--temperature {self.temperature:g}: must be 0 or more")
        if (self.price_in is None) != (self.price_out is None):
            found.append("--price-in and --price-out: give both, for a million tokens each")
        found += [
            f"--{name.replace('_', '-')} {value:g}: must be 0 or more"
            for name in ("price_in", "price_out")
            if (value := getattr(self, name)) is not None and not value >= 0
        ]
        found += self.filters.problems()
        try:
            prompt = read_prompt(Path(self.prompt_path), self.prompt_variables)
        except BadInput as error:
            found += error.problems
        check(found)
        return prompt
