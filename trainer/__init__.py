"""Training, and what follows it. Importing the package loads nothing: `from trainer import EmbedderFineTuner` does."""

_EXPORTED = ("EmbedderFineTuner", "FineTuningConfig")


def __getattr__(name: str):
    if name in _EXPORTED:
        from trainer.frontends import python_api

        return getattr(python_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
