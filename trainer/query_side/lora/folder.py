"""The folder of a trained query encoder: a Router with two whole models, for sentence-transformers.

query_adapter.json, query_adapter.safetensors   the verdict; no layers
modules.json, router_config.json                encode_query and encode_document
query/                                          the model with its adapters merged, a folder of its own
document/                                       the model as it is, which made the store's vectors
"""

import shutil
from pathlib import Path

from data_prep.common.files import write_json
from data_prep.texts.tokenizer_rules import read_json
from trainer.inference.text_encoder import TextEncoder
from trainer.query_side.adapter import QueryAdapter
from trainer.query_side.exports.folder import DOCUMENT, MODULES, QUERY, UNIT, write_model
from trainer.query_side.lora.query_encoder import QueryEncoder
from trainer.run_dir.checkpoint_writer import write_output

MODULES_FILE = "modules.json"
SETTINGS = "config_sentence_transformers.json"  # prompts, and how vectors are compared


def write_lora_folder(output: Path, adapter: QueryAdapter, encoder: TextEncoder, learner: QueryEncoder) -> None:
    """Writes the folder whole or not at all. learner: is merged, so that nothing can be trained afterwards."""

    def write(folder: Path) -> None:
        for route in (QUERY, DOCUMENT):
            (folder / route).mkdir()
        learner.write(folder / QUERY)
        write_model(folder / DOCUMENT, encoder)
        add_routes(folder)
        adapter.save(folder)

    write_output(output, write)


def add_routes(folder: Path) -> None:
    """Makes one model of the folders QUERY and DOCUMENT. Both routes end in vectors of length 1."""
    types, structure = {UNIT: f"{MODULES}.{UNIT}"}, {}
    (folder / UNIT).mkdir()
    for route in (QUERY, DOCUMENT):
        modules = {
            f"{route}/{one['path']}".rstrip("/"): one["type"] for one in read_json(folder / route / MODULES_FILE)
        }
        types |= modules
        structure[route] = [*modules, UNIT]
    parameters = {"default_route": DOCUMENT, "allow_empty_key": True}
    write_json(folder / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    write_json(folder / MODULES_FILE, [{"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.Router"}])
    shutil.copyfile(folder / DOCUMENT / SETTINGS, folder / SETTINGS)
