"""The Ray cluster of a run: reaching it, and what of it a session asks for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from specrunner.catalogue.extras import install_command
from specrunner.errors import CapabilityMissing, ConfigurationError
from specrunner.sessions.places import Need

PATIENCE = 10.0
"""Seconds to wait for the head of a cluster to take a connection."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a session asks of the node that it is put on.

    Attributes:
        cpus: cores, as many as its engine computes with threads.
        gpus: whole GPUs.
        memory: bytes.
    """

    cpus: int
    gpus: int
    memory: int

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Tell whether a node with these resources, all of them free, can take it."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return all(resources.get(name, 0.0) >= amount for name, amount in wanted.items())


def connect(address: str | None) -> None:
    """Join a cluster: the one at `address`, else one that runs on this machine, else one made for this run alone.

    Raises:
        ConfigurationError: Ray is not installed, or there is no cluster at `address`, or its versions are others.
    """
    if find_spec("ray") is None:
        raise ConfigurationError("the executor ray needs the package ray", help=f"run: {install_command('ray')}")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a session without GPUs keeps the caller's view
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address is not None:
            require_listener(address)
            ray.init(address=address, **quiet)
            return
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(address="local", include_dashboard=False, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster {address}" if address is not None else "a Ray cluster"
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigurationError(f"{where} cannot be joined: {cause}", help="see: ray status") from error


def require_listener(address: str) -> None:
    """Make sure that somebody listens at `HOST:PORT`, before Ray tries for a minute; the rest is Ray's business.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def list_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def settle_demand(need: Need, cpus: int, nodes: Iterable[Mapping[str, Any]]) -> Demand:
    """Return what a session asks for: what it needs, and never more cores or memory than the largest node has.

    Raises:
        CapabilityMissing: no node has so many GPUs, or there is no node.
    """
    offers = [node["Resources"] for node in nodes]
    able = [offer for offer in offers if offer.get("GPU", 0.0) >= need.gpus]
    if not able:
        what = f"has {need.gpus} GPU{'s' if need.gpus > 1 else ''}" if offers else "is alive"
        raise CapabilityMissing(f"no node of the Ray cluster {what}")
    # Cores and memory of one and the same node, or nobody could take it.
    largest = max(able, key=lambda offer: (offer.get("CPU", 0.0) >= cpus, offer.get("memory", 0.0)))
    return Demand(min(cpus, int(largest.get("CPU", 0.0))), need.gpus, min(need.memory, int(largest.get("memory", 0.0))))
