"""Describes one node of several: its rank, the address where all meet, its network card. Never imports torch."""

import ipaddress
import os
import socket
from urllib.parse import urlsplit

import psutil

from data_prep.common.errors import BadInput
from data_prep.common.files import check
from launch.command import MASTER_PORT, Nodes

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def find_nodes(count: int, rank: int | None, master: str | None) -> Nodes | None:
    """Checks --nnodes, --node-rank and --master on this machine; None for a single node. Raises BadInput."""
    if count < 1:
        raise BadInput(f"--nnodes: must be at least 1 (given: {count})")
    flags = {"--node-rank": rank, "--master": master}
    if count == 1:
        useless = [f"{flag}: is for several nodes; give --nnodes" for flag, value in flags.items() if value is not None]
        check(useless)
        return None
    problems = []
    if rank is None or not 0 <= rank < count:
        problems.append(f"--node-rank: say which of the {count} nodes this is, 0 to {count - 1} (given: {rank})")
    if master is None:
        problems.append("--master: say where node 0 is, HOST or HOST:PORT, as every node reaches it")
    check(problems)
    host, port = parse_master(master)
    address = resolve(host)
    if rank == 0:
        _check_master(host, address, port)
    interface_set = any(os.environ.get(name) for name in INTERFACES)
    return Nodes(count, rank, host, port, "" if interface_set else interface_to(address))


def parse_master(master: str) -> tuple[str, int]:
    """Parses HOST, HOST:PORT or [IPv6]:PORT to (host, port). Raises BadInput."""
    try:
        parts = urlsplit(f"//{master}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(f"--master: {master} is not HOST[:PORT] ({error})") from None
    if not host or parts.netloc != master or "@" in master:
        raise BadInput(f"--master: {master} is not HOST[:PORT]")
    return host, port or MASTER_PORT


def resolve(host: str) -> str:
    """Returns the address of a host, as this machine resolves it. Raises BadInput."""
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        mend = "give node 0's address, or add it to /etc/hosts"
        raise BadInput(f"--master: {host} does not resolve on this node ({error}); {mend}") from None


def own_addresses() -> dict[str, str]:
    """Maps the addresses of this machine to its network cards."""
    return {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }


def interface_to(address: str) -> str:
    """Returns the network card over which this machine reaches an address; empty if unknown."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing: it only looks up the route
            own = probe.getsockname()[0]
        except OSError as error:
            raise BadInput(f"--master: there is no route from this node to {address} ({error})") from None
    return own_addresses().get(own, "")


def _check_master(host: str, address: str, port: int) -> None:
    """Checks on node 0 that --master is this node, by a name that other nodes can reach, and that its port is free."""
    own = own_addresses()
    if ipaddress.ip_address(address).is_loopback:
        if host != "localhost" and host != address:
            mend = f"give an address of this node: {_listed(own)}"
            raise BadInput(f"--master: {host} is {address} on this node, which no other node reaches; {mend}")
    elif address not in own:
        text = f"is not this node, but node 0 must be; this node's addresses: {_listed(own)}"
        raise BadInput(f"--master: {host} ({address}) {text}")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise BadInput(f"--master: port {port} cannot be used here ({error.strerror}); give another") from None


def _listed(own: dict[str, str]) -> str:
    outside = [f"{address} ({name})" for address, name in own.items() if not ipaddress.ip_address(address).is_loopback]
    return ", ".join(outside) or "none"
