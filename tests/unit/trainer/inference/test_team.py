"""The encoder and the search of mining, in one process; over ranks: tests/multiprocess."""

import json

import numpy as np
import pytest

from data_prep.common.errors import BadInput, Failed
from tests import tiny
from trainer.config.sections import ModelConfig
from trainer.inference.team import Team
from trainer.inference.text_encoder import TextEncoder
from trainer.ranking import search as searching


@pytest.fixture
def team(tiny_bert) -> Team:
    return Team(TextEncoder(ModelConfig(path=str(tiny_bert)), "cpu"))


def test_a_digest_names_what_changes_an_embedding(tiny_bert, tmp_path):
    wide = tiny.model(tmp_path / "cls", pooling="cls")
    configs = [
        ModelConfig(path=str(tiny_bert)),
        ModelConfig(path=str(wide)),
        ModelConfig(path=str(tiny_bert), query_prompt="w1 "),
        ModelConfig(path=str(tiny_bert), passage_prompt="w1 "),
        ModelConfig(path=str(tiny_bert), passage_max_len=16),
    ]
    digests = [Team(TextEncoder(config, "cpu")).digest for config in configs]
    digests.append(Team(TextEncoder(configs[0], "cpu", precision="bf16")).digest)
    assert len(set(digests)) == len(digests)
    assert Team(TextEncoder(configs[0], "cpu")).digest == digests[0]


def test_search_is_a_full_sort_without_what_is_banned(team, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (50, team.size)).astype(np.float32)
    queries = rng.integers(-2, 3, (6, team.size)).astype(np.float32)
    banned = [rng.choice(50, count, replace=False) for count in range(6)]
    monkeypatch.setattr("trainer.inference.team.SENT", 7 * team.size)
    monkeypatch.setattr(searching, "TILE", 9 * team.size)
    team.hold(lambda first, last: vectors[first:last], 50)
    for query, out, (numbers, scores) in zip(queries, banned, team.search(queries, banned, 12)):
        all_scores = vectors @ query
        best = [n for n in np.lexsort((np.arange(50), -all_scores)) if n not in out][:12]
        assert numbers.tolist() == best and scores.tolist() == all_scores[best].tolist()


def test_a_text_that_is_cut_is_counted(team):
    long = " ".join(tiny.WORDS[:99])
    vectors, cut = team.queries(["w1", long, "w2", long])
    assert cut.tolist() == [False, True, False, True] and np.array_equal(vectors[1], vectors[3])


def test_embeddings_are_normalised_where_the_folder_says_cosine(tmp_path):
    folder = tiny.model(tmp_path / "plain")
    (folder / "modules.json").write_text(
        json.dumps(
            [part for part in json.loads((folder / "modules.json").read_text()) if "Normalize" not in part["type"]]
        )
    )
    settings = folder / "config_sentence_transformers.json"
    for stated, unit in (("cosine", True), ("dot", False)):
        settings.write_text(json.dumps({"similarity_fn_name": stated}))
        team = Team(TextEncoder(ModelConfig(path=str(folder)), "cpu"))
        lengths = np.linalg.norm(team.passages(["w1 w2", "w3"])[0], axis=1)
        assert team.unit == unit and np.allclose(lengths, 1.0, atol=1e-5) == unit
    settings.write_text('{"similarity_fn_name": "euclidean"}')
    with pytest.raises(BadInput, match="its similarity is euclidean"):
        Team(TextEncoder(ModelConfig(path=str(folder)), "cpu"))


def test_an_error_of_the_work_is_raised(team):
    def fails():
        raise Failed("a full disk")

    with pytest.raises(Failed, match="a full disk"):
        team.lead(fails)
