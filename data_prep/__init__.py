"""From sources to sharded Arrow data: records, formats, stores, pairs, hard negatives, shards. Never imports torch."""

_EXPORTED = ("QuestionGenerationConfig", "QuestionGenerator")


def __getattr__(name: str):
    """`from data_prep import QuestionGenerator` loads data_prep.generation only then."""
    if name in _EXPORTED:
        from data_prep.generation import questions

        return getattr(questions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
