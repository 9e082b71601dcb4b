"""Cluster specification: coordinator, number of processes and index of this one, from flags or detected by jax."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket


@dataclasses.dataclass(frozen=True)
class ClusterSpec:
    """The place of this process in a run of several processes.

    Attributes:
      coordinator: HOST:PORT of process 0. processes: their number. process: index of this one, from 0.
      timeout: seconds to wait until all processes are connected.
    """

    coordinator: str
    processes: int
    process: int
    timeout: float = 300

    def __post_init__(self) -> None:
        host, colon, port = self.coordinator.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"--coordinator is {self.coordinator!r}; it must be HOST:PORT of process 0")
        if self.processes < 1:
            raise ValueError(f"--processes is {self.processes}; it must be at least 1")
        if not 0 <= self.process < self.processes:
            raise ValueError(
                f"--process is {self.process}; with --processes={self.processes} it must be from 0 to "
                f"{self.processes - 1}"
            )
        if self.timeout <= 0:
            raise ValueError(f"--init-timeout is {self.timeout:g}; it must be more than 0 seconds")

    @property
    def host(self) -> str:
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])


def find(
    distributed: str | None,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    timeout: float | None,
) -> ClusterSpec | None:
    """The ClusterSpec that the flags of the command line describe; None without any: a run of one process.

    Args:
      distributed: "auto" to detect the cluster. coordinator, processes, process, timeout: as in ClusterSpec.

    Raises:
      ConnectionError: the cluster that jax detects does not answer.
      ValueError: flags that contradict each other or are incomplete, or nothing to detect.
    """
    explicit = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    given = [flag for flag, value in explicit.items() if value is not None]
    wait_for = {} if timeout is None else {"timeout": timeout}
    if distributed is not None:
        if distributed != "auto":
            raise ValueError(f"--distributed is {distributed!r}; it can only be auto")
        if given:
            raise ValueError(f"--distributed=auto finds out what {', '.join(given)} say; give one or the other")
        return _detect(**wait_for)
    if given:
        if missing := [flag for flag in explicit if flag not in given]:
            raise ValueError(f"{', '.join(given)} without {', '.join(missing)}; all three are needed")
        assert coordinator is not None and processes is not None and process is not None
        return ClusterSpec(coordinator, processes, process, **wait_for)
    if timeout is not None:
        raise ValueError("--init-timeout is about several processes; it needs --distributed=auto or --coordinator")
    return None


def _detect(timeout: float = 300) -> ClusterSpec:
    """The ClusterSpec by jax's cluster detection, which is not part of its public interface."""
    from jax._src.clusters import ClusterEnv

    given = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(given, None, None, None, None, int(timeout))
    except Exception as error:
        raise ConnectionError(
            f"--distributed=auto: asking the cluster failed: {type(error).__name__}: {error}"
        ) from None
    coordinator, processes, process, _ = found
    if coordinator is None or processes is None or process is None:
        raise ValueError(
            "--distributed=auto finds neither Cloud TPU nor GKE, Slurm (processes started by srun) or Open MPI here; "
            "give --coordinator=HOST:PORT --processes=N --process=I, or no such flag to train in one process"
        )
    return ClusterSpec(coordinator, processes, process, timeout)


def is_loopback(host: str) -> bool:
    """Whether a host name stands for loopback addresses only; False where it cannot be resolved."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def loopback_hint(spec: ClusterSpec) -> str:
    """An addition to error messages where the coordinator is a loopback address, "" otherwise."""
    if not is_loopback(spec.host):
        return ""
    return (
        f". {spec.host} is an address that each host has for itself: with processes on several hosts, --coordinator "
        "must be process 0's address in their network"
    )


def check_loopback(spec: ClusterSpec) -> None:
    """Fails at once, instead of at the timeout, where a Slurm job has several hosts and the coordinator is loopback.

    Raises:
      ValueError: it is.
    """
    hosts = max(int(os.environ.get(name, "1")) for name in ("SLURM_JOB_NUM_NODES", "SLURM_STEP_NUM_NODES"))
    if hosts > 1 and is_loopback(spec.host):
        raise ValueError(f"--coordinator is {spec.coordinator}, and the job has {hosts} hosts{loopback_hint(spec)}")
