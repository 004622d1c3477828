"""A transformer as ONNX, where sentence-transformers and text-embeddings-inference look for it. torch.onnx writes it.

The graph ends in last_hidden_state; pooling and normalisation stay in the folder's own files, as those loaders expect.
"""

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

from data_prep.common.errors import Failed, first_line
from trainer.config.sections import ModelConfig
from trainer.model.build import load_embedder
from trainer.model.dense_layers import load as load_dense
from trainer.model.embedder import finish, pool
from trainer.model.tokenizer import load_tokenizer, prompt_tokens, tokenize
from trainer.model_folder.spec import read_spec

ONNX_FILE = "onnx/model.onnx"
INPUTS = ("input_ids", "attention_mask")
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_onnx() -> list[str]:
    """Returns a problem if a package for --onnx is missing."""
    missing = [name for name in NEEDED if not find_spec(name)]
    return [f"--onnx: {', '.join(missing)} not installed; pip install 'embedfleet[onnx]'"] if missing else []


def write_onnx(folder: Path, trust_remote_code: bool = False) -> None:
    """Adds onnx/model.onnx to a folder of a whole model. Raises Failed for a family that torch.onnx cannot trace."""
    embedder, tokenizer, _, _ = load_embedder(ModelConfig(path=str(folder), trust_remote_code=trust_remote_code))
    backbone = embedder.eval().backbone

    class LastHidden(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    model = LastHidden()
    model.backbone = backbone
    example = tokenizer(["one text", "and another, longer text"], padding=True, return_tensors="pt")
    free = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    (folder / ONNX_FILE).parent.mkdir()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of packages that are not there and not needed
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, tuple(example[name] for name in INPUTS), input_names=list(INPUTS),
                output_names=["last_hidden_state"], dynamic_shapes=dict.fromkeys(INPUTS, free), dynamo=True,
            )  # fmt: skip
            program.save(folder / ONNX_FILE)
    except Exception as error:  # whatever the tracer makes of a family it does not know
        kind = backbone.config.model_type
        raise Failed(
            f"--onnx: torch.onnx {torch.__version__} cannot write a {kind} as ONNX ({type(error).__name__}: "
            f"{first_line(error)}); leave --onnx out"
        ) from None


def onnx_embeddings(folder: Path, texts: list[str], trust_remote_code: bool = False) -> dict:
    """Returns query and document -> (texts, d) float32, by onnxruntime and the folder's tokenizer and pooling."""
    import onnxruntime

    config = ModelConfig(path=str(folder), trust_remote_code=trust_remote_code)
    spec = read_spec(config, folder)
    tokenizer, layers = load_tokenizer(config, str(folder)), load_dense(spec.dense)
    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    vectors = {}
    for side, prompt in (("query", spec.rules.query_prompt), ("document", spec.rules.passage_prompt)):
        ids, _ = tokenize(texts, prompt, spec.rules.max_len, tokenizer)
        skipped = None if spec.pool_prompt else torch.full((len(ids),), prompt_tokens(prompt, tokenizer))
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="np", return_attention_mask=True)
        hidden = session.run(None, {name: batch[name].astype("int64") for name in INPUTS})[0]
        pooled = pool(torch.tensor(hidden), torch.tensor(batch["attention_mask"]), spec.pooling, skipped)
        vectors[side] = finish(pooled, layers, spec.normalize).detach().numpy()
    return vectors
