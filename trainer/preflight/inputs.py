"""The files that a run reads: opened on first use, shared by checks, plan and training. Never imports torch."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.reading.retrieval_sets import RetrievalSet, evaluation_of, load_evaluation, scored_of
from data_prep.reading.scored_pairs import ScoredPairs
from data_prep.shards.folder import ShardFolder, open_shards
from data_prep.shards.fraction import rows_of_fraction, take_fraction
from data_prep.shards.shared_keys import SourceRows, shared_keys
from trainer.config.sections import GENERAL, RunConfig
from trainer.model_folder.files import fetch
from trainer.model_folder.spec import ModelSpec, read_spec
from trainer.planner.from_config import make_eval_plan, make_plan
from trainer.planner.plan import BatchPlan


@dataclass
class Inputs:
    """The model folder, shards, batch plan and evaluation sets of a run file, each opened once; raises BadInput."""

    config: RunConfig
    _sets: dict[str, RetrievalSet | ScoredPairs] = field(default_factory=dict, init=False, repr=False)  # by path

    @cached_property
    def spec(self) -> ModelSpec:
        """The model folder's description; a hub id is downloaded once."""
        model = self.config.model
        return read_spec(model, fetch(model.path, model.trust_remote_code), own_prompts=self.config.own_prompts)

    @cached_property
    def shards(self) -> ShardFolder:
        """The shard folder data.train."""
        return open_shards(self.config.data.train)

    @cached_property
    def sources(self) -> list[SourceRows]:
        """The train rows by source; those of data.fraction, where it is below 1."""
        sources, fraction = self.shards.train_sources(), self.config.data.fraction
        if fraction == 1:
            return sources
        return take_fraction(sources, rows_of_fraction(self.shards.split("train"), fraction, self.config.train.seed))

    @cached_property
    def plan(self) -> BatchPlan:
        """The batch plan of the train rows."""
        return make_plan(self.config, self.sources, self.shards.fingerprint)

    @cached_property
    def eval_sources(self) -> list[SourceRows]:
        """The rows of the eval split by source, of the sources that train; two rows at least. Reads the source of every
        row."""
        split = self.shards.split("eval")
        names = np.array([name for (name,) in split.values("source")], dtype=object)
        nothing = shared_keys(np.empty(0, np.int64), np.empty(0, np.int64))
        rows = {part.name: np.flatnonzero(names == part.name) for part in self.sources}
        return [SourceRows(name, ids, nothing) for name, ids in rows.items() if len(ids) > 1]

    @cached_property
    def eval_plan(self) -> BatchPlan | None:
        """The batches of watch.eval_loss; None: it is off."""
        if not self.config.watch.eval_loss:
            return None
        return make_eval_plan(self.config, self.eval_sources, self.shards.fingerprint)

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of data.train, or None if it cannot be opened: preflight reports why."""
        try:
            return self.shards.fingerprint
        except (BadInput, OSError):
            return None

    @cached_property
    def eval_paths(self) -> dict[str, str]:
        """Paths of the evaluation sets by source; "" is the set of the whole run: data.eval, or else the eval split.

        A split that holds only graded pairs of one score does not count: nothing can be measured on it.
        """
        config, paths = self.config, {}
        if config.data.eval:
            paths[""] = config.data.eval
        elif config.data.eval is None and self._can_be_measured:
            paths[""] = config.data.train
        if config.data.general:
            paths[GENERAL] = config.data.general
        return paths | {name: source.eval for name, source in config.sources.items() if source.eval}

    @property
    def _can_be_measured(self) -> bool:
        """True if the shards have an eval split with other rows than graded pairs, or with scores that differ."""
        shards = self.shards
        if "eval" not in shards.splits:
            return False
        return shards.split("eval").count("score") < shards.rows("eval") or scored_of(shards) is not None

    @property
    def no_eval(self) -> str:
        """The reason that the whole run has no evaluation set."""
        return "data.eval is off" if self.config.data.eval is False else "no data.eval, no eval split to measure"

    @cached_property
    def eval_sets(self) -> dict[str, RetrievalSet | ScoredPairs]:
        """The evaluation sets by source, like eval_paths."""
        return {name: self.eval_set(path) for name, path in self.eval_paths.items()}

    @property
    def eval_notes(self) -> list[str]:
        """Notes on the evaluation sets that are read already."""
        return [note for data in self._sets.values() for note in data.notes]

    def eval_set(self, path: str) -> RetrievalSet | ScoredPairs:
        """The evaluation set of one path, read once."""
        if path not in self._sets:
            own, rule = path == self.config.data.train, self.config.data.ignore_identical_ids
            self._sets[path] = evaluation_of(self.shards) if own else load_evaluation(path, ignore_identical_ids=rule)
        return self._sets[path]
