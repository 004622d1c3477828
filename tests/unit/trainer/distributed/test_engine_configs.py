"""The launch configs: every engine has its own, each fact stands in one of them, and their parsers read them."""

import json

import pytest
import yaml

from data_prep.common.errors import BadInput
from tests.launching import ROOT
from trainer.distributed.deepspeed_json import config_folder, read_ds_json, zero_engine
from trainer.distributed.engines import ENGINES, ZERO
from trainer.distributed.launcher_claims import accelerate_claim

YAMLS = {path.stem: path for path in config_folder("accelerate_configs").glob("*.yaml")}
JSONS = {path.stem: path for path in config_folder("ds_configs").glob("*.json")}
COUNTS = {"num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "gpu_ids"}
RUN_FILE = {"mixed_precision", "gradient_accumulation_steps", "gradient_clipping", "dynamo_config", "seed"}
STAGE = {"zero_stage", "offload_optimizer_device", "offload_param_device", "zero3_init_flag"}


def leaves(values: dict, at: tuple = ()):
    """(path, value) of everything that a nested mapping states."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def without(values: dict, path: tuple) -> dict:
    made = json.loads(json.dumps(values))
    node = made
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return made


def parsed(values: dict, where) -> dict:
    """Returns the config as accelerate understands it."""
    from accelerate.commands.config.config_args import ClusterConfig

    where.write_text(yaml.safe_dump(values))
    return ClusterConfig.from_yaml_file(str(where)).to_dict()


def test_every_engine_has_its_file_and_every_file_its_engine():
    assert set(YAMLS) == {*ENGINES, "multi_node"}
    assert set(JSONS) == set(ZERO)


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_holds_no_counts_no_fact_of_the_run_file_and_nothing_that_goes_without_saying(name, tmp_path):
    values = yaml.safe_load(YAMLS[name].read_text())
    stated = dict(leaves(values))
    assert not {path[-1] for path in stated} & (COUNTS | RUN_FILE | STAGE)
    whole = parsed(values, tmp_path / "a.yaml")  # raises for a key that accelerate does not know
    for path in stated:
        if path != ("distributed_type",):  # without which accelerate refuses the file
            assert parsed(without(values, path), tmp_path / "b.yaml") != whole, f"{path} is accelerate's default"


@pytest.mark.parametrize("name", ZERO)
def test_the_stage_stands_in_the_json_only_and_each_json_is_named_once(name):
    named = [yaml.safe_load(path.read_text()).get("deepspeed_config", {}) for path in YAMLS.values()]
    files = [section["deepspeed_config_file"] for section in named if section]
    assert files.count(f"ds_configs/{name}.json") == 1 and len(files) == len(ZERO)
    assert zero_engine(read_ds_json(f"{name}.json")["zero_optimization"]) == name


@pytest.mark.parametrize("name", ZERO)
def test_a_json_states_nothing_but_zero_and_nothing_that_goes_without_saying(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    values = json.loads(JSONS[name].read_text())
    zero = values.pop("zero_optimization")
    assert set(values.values()) == {"auto"}, "the run file owns the rest"
    whole = DeepSpeedZeroConfig(**zero)
    for path, _ in leaves(zero):
        assert DeepSpeedZeroConfig(**without(zero, path)) != whole, f"{path} is DeepSpeed's default"


@pytest.mark.parametrize("name", ZERO)
def test_deepspeeds_own_parser_reads_what_the_trainer_hands_it(name):
    import torch
    from deepspeed.runtime.config import DeepSpeedConfig

    from trainer.engine.zero_engine import plugin

    handed = plugin(f"{name}.json", 0.5, torch.device("cpu")).deepspeed_config
    read = DeepSpeedConfig(handed)
    assert (read.gradient_clipping, read.gradient_accumulation_steps) == (0.5, 1)
    assert int(read.zero_config.stage) == int(name[4])
    assert (read.zero_config.offload_optimizer is not None) == name.endswith("_offload")


def test_the_readme_names_no_yaml_or_json_that_is_not_there():
    import re

    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"accelerate_configs/(\w+)\.yaml", text)) <= set(YAMLS)


def test_the_plan_counts_with_deepspeeds_own_defaults():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from launch.plan.estimate import DEFAULTS
    from launch.plan.variant import PERSISTENT

    theirs = DeepSpeedZeroConfig(stage=3)
    assert {name: getattr(theirs, name.removeprefix("stage3_")) for name in DEFAULTS} == DEFAULTS
    assert theirs.param_persistence_threshold == PERSISTENT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"zero_optimization": 2}', "zero_optimization: must be an object"),
        ('{"zero_optimization": {"offload_param": "cpu"}}', "zero_optimization.offload_param: must be an object"),
        ("[" * 3000, "nested too deep"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_deepspeed_json_of_other_types_is_refused(tmp_path, text, reason):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=reason):
        read_ds_json(str(path))


def test_a_name_that_no_file_can_have_is_no_deepspeed_json():
    with pytest.raises(BadInput, match="no such DeepSpeed config"):
        read_ds_json("9" * 5000)


@pytest.mark.parametrize(
    "body",
    [
        b"num_processes: two",
        b"num_processes: .inf",
        b"deepspeed_config: 3\ndistributed_type: DEEPSPEED",
        b"deepspeed_config: {deepspeed_config_file: [x]}\ndistributed_type: DEEPSPEED",
        b"a: !!timestamp x",
        b"\xff: 1",
    ],
)
def test_an_accelerate_yaml_that_accelerate_refuses_claims_nothing(tmp_path, body):
    path = tmp_path / "a.yaml"
    path.write_bytes(body)
    claim = accelerate_claim(["accelerate", "launch", "--config_file", str(path), "-m", "trainer"])
    assert (claim.processes, claim.engine) == (None, None)
