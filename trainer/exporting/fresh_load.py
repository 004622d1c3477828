"""A model folder as a stranger loads it: python -m trainer.exporting.fresh_load FOLDER OUT.npz [--trust-remote-code].

Writes `<way> query` and `<way> document` for every way of loading, and prints their names as a JSON list. See
proof.load_elsewhere.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from trainer.exporting.onnx import ONNX_FILE, onnx_embeddings
from trainer.inference.probe import read_probe

WITH_CODE = "--trust-remote-code"
THEIRS, OURS, ONNX = "sentence-transformers", "trainer.inference", "onnxruntime"


def main(argv: list[str]) -> int:
    by_way = embeddings(Path(argv[0]), WITH_CODE in argv[2:])
    arrays = {f"{way} {side}": vectors for way, sides in by_way.items() for side, vectors in sides.items()}
    np.savez(argv[1], **arrays)
    print(json.dumps(list(by_way)))
    return 0


def embeddings(folder: Path, trust_remote_code: bool = False) -> dict[str, dict]:
    """Returns way of loading -> query or document -> (texts, d) float32 of the folder's probe texts."""
    texts = read_probe(folder).texts
    way, load = (THEIRS, _theirs) if find_spec("sentence_transformers") else (OURS, _ours)
    by_way = {way: load(folder, texts, trust_remote_code)}
    if (folder / ONNX_FILE).is_file():
        by_way[ONNX] = onnx_embeddings(folder, texts, trust_remote_code)
    return by_way


def _theirs(folder: Path, texts: list[str], trust_remote_code: bool) -> dict:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=trust_remote_code)
    quiet = {"show_progress_bar": False}
    return {"query": model.encode_query(texts, **quiet), "document": model.encode_document(texts, **quiet)}


def _ours(folder: Path, texts: list[str], trust_remote_code: bool) -> dict:
    from trainer.config.sections import ModelConfig
    from trainer.inference.text_encoder import TextEncoder

    encoder = TextEncoder(ModelConfig(path=str(folder), trust_remote_code=trust_remote_code), "cpu")
    return {"query": encoder.queries(texts), "document": encoder.passages(texts)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
