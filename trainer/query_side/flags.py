"""Command-line flags that name a closed model behind an embeddings endpoint."""

import argparse
from pathlib import Path

from data_prep.common.files import check
from data_prep.model_server.embeddings import EmbeddingConfig
from data_prep.model_server.flags import LIMITS, add_limits
from trainer.query_side.encoder import AdaptedEndpoint
from trainer.query_side.endpoint_encoder import EndpointEncoder

FOLDERS = ("max_len", "pooling", "trust_remote_code")  # flags of a model folder alone


def add_either_model(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds --model and the flags of a closed model, of which one is given. text: help of --model."""
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", help=text)
    models.add_argument("--endpoint-model", metavar="NAME", help="name of a closed model on its server")
    group = parser.add_argument_group("closed model", "vectors from an OpenAI-compatible server's /v1/embeddings")
    text = "address of the server (default: OPENAI_BASE_URL or OpenAI's own); key: OPENAI_API_KEY, or .env"
    group.add_argument("--endpoint", metavar="URL", help=text)
    add_limits(group, "vectors")


def add_adapter(parser: argparse.ArgumentParser, model: str = "--model or --endpoint-model") -> None:
    """Adds --query-adapter. model: whose queries it maps."""
    text = f"adapter of trainer.adapt_queries, which maps the queries of {model}"
    parser.add_argument("--query-adapter", type=Path, metavar="FOLDER", help=text)


def searches(args: argparse.Namespace, adapter: Path | None = None) -> list[str]:
    """Returns the first words of the command that searches with the same model. adapter: of its queries."""
    model = ["--model", args.model] if args.model else ["--endpoint-model", args.endpoint_model]
    mapped = ["--query-adapter", str(adapter)] if adapter else []
    return ["python", "-m", "trainer.search", "QUERY", *model, *mapped]


def closed_model(args: argparse.Namespace, adapter: Path | None = None) -> EndpointEncoder | None:
    """Returns the closed model that the flags name, or None. adapter: folder of its query adapter.

    Raises BadInput for flags of the other kind of model, and for an adapter of another model.
    """
    closed = args.endpoint_model is not None
    wrong = FOLDERS if closed else ("endpoint", *LIMITS)
    mend = "belongs to --model, and --endpoint-model is given" if closed else "belongs to --endpoint-model"
    problems = [f"--{name.replace('_', '-')}: {mend}" for name in wrong if _given(args, name)]
    if not closed:
        check(problems)
        return None
    limits = {name: value for name in LIMITS if (value := getattr(args, name)) is not None}
    config = EmbeddingConfig(model=args.endpoint_model, url=args.endpoint, **limits)
    check(problems + config.problems())
    prompts = args.query_prompt or "", args.passage_prompt or ""
    return EndpointEncoder(config, *prompts) if adapter is None else AdaptedEndpoint(config, *prompts, adapter)


def _given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    return value is not None and value is not False
