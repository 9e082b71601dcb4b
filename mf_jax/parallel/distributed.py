"""Start-up of a run of several processes: connecting all of them, comparing their settings, jax.distributed.

A process knows its ClusterSpec: the address of process 0 (the coordinator), the number of processes and its own index.
All first connect to process 0 at that address by plain TCP; then jax's coordination service takes over the port. jax's
own start-up is not enough because it cannot say which processes are missing: at its timeout,
`jax.distributed.initialize` aborts every process from C++ with "Deadline Exceeded", whatever the reason (jax 0.10 and
0.11; a Python callback in place of the abort ends in std::bad_cast). The TCP connections stay open: the ProcessGroup
passes failures, errors and stop requests on over them.

Only this file and mf_jax.parallel.processes depend on the number of hosts.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import jax

from mf_jax.parallel import processes
from mf_jax.parallel.cluster import ClusterSpec, check_loopback, loopback_hint
from mf_jax.parallel.processes import ProcessGroup, wait_readable

# Seconds until jax's coordination service gives up a process that is connected but sends nothing: one that is stopped,
# or whose host swaps. The heartbeat comes from a C++ thread that neither Python's lock nor a compilation delays. Dead
# processes and hosts are noticed sooner, by mf_jax.parallel.processes.
HEARTBEAT = 30


class Missing(ConnectionError):
    """Processes that did not connect in time, or a coordinator that cannot be reached. A restart may help."""


@contextlib.contextmanager
def joined(
    spec: ClusterSpec | None,
    must_match: Mapping[str, str],
    explain: Callable[[Exception], tuple[str, int] | None],
    verb: str = "train",
    after_death: str = "",
) -> Iterator[ProcessGroup]:
    """Context of the process group of a run, all connected and jax.distributed initialised.

    Enter it before anything uses a device. An exception in the body ends this process and, within seconds, all others:
    it does not leave this context, except in a group of one.

    Args:
      spec: None for a group of one.
      must_match: values that must be identical in all processes, by name, such as those of the config.
      explain: returns (message, exit status) for an expected error; None for others, which get a traceback.
      verb, after_death: of messages, see ProcessGroup.

    Raises:
      Missing: a process that did not connect, a coordinator that cannot be reached.
      ValueError: values of `must_match` differ, or the devices are not those of all processes.
    """
    if spec is None or spec.processes == 1:
        yield ProcessGroup()
        return
    must_match = {"jax": jax.__version__, **must_match}
    peers = _accept_all(spec, must_match) if spec.process == 0 else _connect_to_main(spec, must_match)
    group = ProcessGroup(spec.process, peers, verb, after_death)
    try:
        # The preemption service would take SIGTERM, which ProcessGroup.should_stop is for.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            spec.coordinator,
            spec.processes,
            spec.process,
            initialization_timeout=int(spec.timeout),
            heartbeat_timeout_seconds=HEARTBEAT,
        )
        if jax.process_count() != spec.processes:
            raise ValueError(
                f"{spec.processes} processes are there, but the {jax.default_backend()} devices are those of "
                f"{jax.process_count()}; is jax installed for the accelerator on all hosts?"
            )
        yield group
    except BaseException as error:
        explained = explain(error) if isinstance(error, Exception) else None
        if explained:
            group.abort(*explained)
        group.abort(f"failed: {type(error).__name__}: {error}", 1, details=traceback.format_exc())
    group.finish()
    jax.distributed.shutdown()


def _accept_all(spec: ClusterSpec, must_match: Mapping[str, str]) -> dict[int, tuple[Connection, str]]:
    """On process 0: waits for the connections of all others and checks that their `must_match` is the same.

    Returns:
      {index: (connection, host name)}.
    """
    arrived: dict[int, tuple[Connection, str]] = {}
    unidentified: list[Connection] = []
    deadline = time.monotonic() + spec.timeout
    both = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", spec.port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=4096
        )
    except OSError as error:
        raise Missing(f"process 0 cannot listen on port {spec.port} ({error}); give another --coordinator") from None

    def refuse(error: Exception) -> NoReturn:
        answer = {"end": str(error), "missing": isinstance(error, Missing)}
        for connection in [*unidentified, *(connection for connection, _ in arrived.values())]:
            _send(connection, answer)
        raise error

    with listener:
        while len(arrived) < spec.processes - 1:
            known = {connection: index for index, (connection, _) in arrived.items()}
            sources: list[socket.socket | Connection] = [listener, *unidentified, *known]
            ready = wait_readable(sources, max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = [str(index) for index in range(1, spec.processes) if index not in arrived]
                refuse(
                    Missing(
                        f"{len(missing)} of {spec.processes} processes did not arrive at {spec.coordinator} within "
                        f"{spec.timeout:g} s: process {', '.join(missing)}{loopback_hint(spec)}"
                    )
                )
            for source in ready:
                if isinstance(source, socket.socket):  # the listener
                    unidentified.append(_connection(listener.accept()[0]))
                elif source in known:  # it died, and may be started again
                    source.close()
                    del arrived[known[source]]
                else:
                    try:
                        hello = json.loads(source.recv_bytes(processes.MAX_MESSAGE))
                        index, host = int(hello["process"]), str(hello["host"])
                        theirs, count = dict(hello["must_match"]), int(hello["processes"])
                    except (EOFError, OSError, ValueError, KeyError, TypeError):
                        unidentified.remove(source)  # a health check, or a port scan
                        source.close()
                        continue
                    if count != spec.processes:
                        refuse(
                            ValueError(f"process {index} on {host} has --processes={count}, process 0 {spec.processes}")
                        )
                    if index in arrived or index == 0:
                        first = arrived[index][1] if index else socket.gethostname()
                        refuse(ValueError(f"there are two processes with --process={index}, on {first} and on {host}"))
                    ours = must_match
                    if differing := [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]:
                        key = differing[0]
                        text = f"process {index} on {host} has {key} {theirs.get(key)}, process 0 {ours.get(key)}"
                        refuse(ValueError(f"{text}; all processes need the same command, but for --process"))
                    unidentified.remove(source)
                    arrived[index] = (source, host)
    # The listener is closed: the port is free for jax.
    for connection in unidentified:
        connection.close()
    for connection, _ in arrived.values():
        _send(connection, {"go": True, "host": socket.gethostname()})
    return arrived


def _connect_to_main(spec: ClusterSpec, must_match: Mapping[str, str]) -> dict[int, tuple[Connection, str]]:
    """On the other processes: connects to process 0 and waits until it has accepted all.

    Returns:
      {0: (connection, host name)}.
    """
    check_loopback(spec)
    deadline = time.monotonic() + spec.timeout
    while True:
        try:
            plain = socket.create_connection((spec.host, spec.port), max(1.0, deadline - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise Missing(
                    f"process {spec.process} cannot reach the coordinator {spec.coordinator} within "
                    f"{spec.timeout:g} s ({error}); is process 0 running there?{loopback_hint(spec)}"
                ) from None
            time.sleep(0.2)
    connection = _connection(plain)
    hello = {"process": spec.process, "processes": spec.processes, "host": socket.gethostname()}
    _send(connection, {**hello, "must_match": must_match})
    try:
        answer: dict[str, Any] = json.loads(connection.recv_bytes(processes.MAX_MESSAGE))  # process 0 has the timeout
    except (EOFError, OSError, ValueError):
        raise Missing(
            f"process {spec.process}: what answers at {spec.coordinator} is not process 0 waiting for this run, or "
            "it ended; is another run still using the port?"
        ) from None
    if "end" in answer:
        raise (Missing if answer["missing"] else ValueError)(answer["end"])
    return {0: (connection, answer["host"])}


def _connection(plain: socket.socket) -> Connection:
    """A connection over a socket, with TCP's keep-alive: it breaks PEER_TIMEOUT seconds after a host is cut off."""
    plain.settimeout(None)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (  # as far as the system has them
        ("TCP_KEEPIDLE", processes.PEER_TIMEOUT // 4),
        ("TCP_KEEPINTVL", processes.PEER_TIMEOUT // 4),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", processes.PEER_TIMEOUT * 1000),
    ):
        if hasattr(socket, option):
            plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return Connection(plain.detach())


def _send(connection: Connection, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.send_bytes(json.dumps(message).encode())
