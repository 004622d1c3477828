"""A chat model's answer about one chunk, as it is kept in the answer cache."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer about one chunk."""

    text: str
    refusal: str = ""
    finish: str = ""  # the server's finish_reason
    tokens_in: int | None = None  # None: the server does not count
    tokens_out: int | None = None
    url: str = ""  # of the server

    @property
    def cut(self) -> bool:
        """True if the server stopped at a limit of tokens."""
        return self.finish == "length"
