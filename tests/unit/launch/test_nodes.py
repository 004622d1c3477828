"""One node of several: what the flags say is checked on the node, and becomes one command."""

import socket
import subprocess
import sys

import pytest

from data_prep.common.errors import BadInput
from launch import nodes as nodes_module
from launch.command import Command, Machine, Nodes, build, choose
from launch.nodes import find_nodes, interface_to, own_addresses, parse_master
from launch.supervise import _end_of, supervise
from tests.launching import free_port
from trainer.distributed.stop import EXIT_CODE

CPU = Machine(gpus=0, mps=False, cores=8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("node0", ("node0", 29500)),
        ("10.0.0.1:1234", ("10.0.0.1", 1234)),
        ("[fe80::1]:1234", ("fe80::1", 1234)),
        ("NODE0:7", ("node0", 7)),
    ],
)
def test_where_the_nodes_meet(given, expected):
    assert parse_master(given) == expected


@pytest.mark.parametrize("given", ["", ":29500", "node0:port", "node0:70000", "user@node0"])
def test_no_place_to_meet(given):
    with pytest.raises(BadInput, match="--master"):
        parse_master(given)


BAD = [
    ((2, None, None), ["--node-rank: say which of the 2 nodes", "--master: say where node 0 is"]),
    ((2, 2, "127.0.0.1"), ["0 to 1 (given: 2)"]),
    ((0, None, None), ["--nnodes: must be at least 1"]),
    ((1, 0, "node0"), ["--node-rank: is for several nodes", "--master: is for several nodes"]),
    ((2, 1, "no-such-host.invalid"), ["does not resolve on this node"]),
    ((2, 0, "192.0.2.7"), ["(192.0.2.7) is not this node"]),
]


@pytest.mark.parametrize(("flags", "words"), BAD)
def test_every_problem_of_the_flags_is_named(flags, words):
    with pytest.raises(BadInput) as caught:
        find_nodes(*flags)
    assert len(caught.value.problems) == len(words)
    for problem, expected in zip(caught.value.problems, words):
        assert expected in problem


def test_a_name_that_is_a_loopback_address_on_node_0_is_refused(monkeypatch):
    """Debian's /etc/hosts has the machine's own name like this: the other nodes would look for rank 0 on themselves."""
    monkeypatch.setattr(nodes_module, "resolve", lambda host: "127.0.1.1")
    with pytest.raises(BadInput, match="node0 is 127.0.1.1 on this node, which no other node reaches"):
        find_nodes(2, 0, "node0")
    assert find_nodes(2, 0, f"127.0.1.1:{free_port()}").count == 2, "by its number it is meant"


def test_a_port_that_is_taken_is_told_on_node_0():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port} cannot be used here"):
            find_nodes(2, 0, f"127.0.0.1:{port}")
        assert find_nodes(2, 1, f"127.0.0.1:{port}").port == port, "there it is node 0 that listens"


def test_the_network_card_that_leads_to_node_0_is_found_unless_it_was_given(monkeypatch):
    for name in nodes_module.INTERFACES:
        monkeypatch.delenv(name, raising=False)
    loopback = own_addresses()["127.0.0.1"]
    assert interface_to("127.0.0.1") == loopback
    assert find_nodes(2, 1, "127.0.0.1").interface == loopback
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert find_nodes(2, 1, "127.0.0.1").interface == ""


def test_one_command_for_each_node():
    nodes = Nodes(3, 1, "node0", 29501, "eth0")
    command = build("r.yaml", [], "zero2", 2, CPU, "cpu", False, 1, nodes=nodes)
    text = str(command)
    assert (
        "--num_processes 6 --num_machines 3 --machine_rank 1 --main_process_ip node0 --main_process_port 29501" in text
    )
    assert "--deepspeed_multinode_launcher standard" in text, "any other writes the environment to a file"
    assert "--processes 6" in text, "what the trainer holds the world against"
    assert command.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    assert "SIGUSR1" in command.environ["PET_SIGNALS_TO_HANDLE"]
    ddp = build("r.yaml", [], "ddp", 2, CPU, "cpu", False, 1, nodes=nodes)
    assert ddp.environ["ACCELERATE_USE_CPU"] == "true" and "deepspeed" not in str(ddp)
    cuda = build("r.yaml", [], "ddp", 4, Machine(4, False, 8), "cuda", False, 1, nodes=nodes)
    assert cuda.environ["NCCL_SOCKET_IFNAME"] == "=eth0" and "ACCELERATE_USE_CPU" not in cuda.environ


def test_the_engine_of_several_nodes():
    assert choose("auto", 1, CPU, "auto", nodes=2) == ("ddp", 1)
    assert choose("auto", None, Machine(1, False, 8), "auto", nodes=2) == ("ddp", 1)
    with pytest.raises(BadInput, match="for 2 nodes use --engine ddp"):
        choose("cpu", None, CPU, "auto", nodes=2)


FAILS = Command([sys.executable, "-c", "raise SystemExit(1)"])


def test_a_marker_of_an_earlier_run_does_not_keep_a_failed_one_from_being_started_again(tmp_path, capsys):
    """The trainer removes it, but only after it has loaded; it may fail before."""
    (tmp_path / "requeue.json").write_text("{}")
    assert supervise(FAILS, lambda: FAILS, tmp_path, 1) == 1
    assert "restart 1 of 1" in capsys.readouterr().err


def test_a_run_that_wrote_its_marker_is_not_started_again(tmp_path, capsys):
    (tmp_path / "requeue.json").write_text("{}")
    code = f"import os; os.utime({str(tmp_path / 'requeue.json')!r}); raise SystemExit(1)"
    assert supervise(Command([sys.executable, "-c", code]), lambda: FAILS, tmp_path, 1) == EXIT_CODE
    assert "restart" not in capsys.readouterr().err


def test_a_launcher_that_outlives_its_ranks_is_killed(monkeypatch, capsys):
    """It is what torchrun does where the link to node 0 is cut: for 15 minutes, and deaf to SIGTERM."""
    monkeypatch.setattr("launch.supervise.LINGER", 0.3)
    monkeypatch.setattr("launch.supervise.LOOK", 0.1)
    rank = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1)'], env={'RANK': '1'}).wait()"
    code = f"import signal, subprocess, sys; signal.signal(15, signal.SIG_IGN); {rank}; signal.pause()"
    assert _end_of(subprocess.Popen([sys.executable, "-c", code])) == -9
    assert "did not end" in capsys.readouterr().err
