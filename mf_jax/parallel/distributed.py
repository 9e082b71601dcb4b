"""Training in several processes: who takes part, the wait until all are there, and jax.distributed.

A process knows three things: the address of process 0 (the coordinator), how many processes there are and which one it
is; from the command line, or from jax's detection of Cloud TPU, GKE, Slurm and Open MPI. They first meet on a plain
connection to that address, then jax's coordination service takes over the port. The meeting is our own because jax's
cannot say who is missing: at its timeout, `jax.distributed.initialize` aborts every process from C++ with "Deadline
Exceeded", whatever the reason (jax 0.10 and 0.11; a Python callback in place of the abort ends in std::bad_cast). And
the connections of the meeting stay: they are what mf_jax.parallel.processes tells of deaths, errors and signals by.

The only file, with mf_jax.parallel.processes, that knows how many hosts there are.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import jax

from mf_jax.parallel import processes
from mf_jax.parallel.cluster import Place, check_loopback, loopback_hint
from mf_jax.parallel.processes import Crew

# Seconds until jax's coordination service gives up a process whose connection stands but which sends nothing: one that
# is stopped, or whose host swaps. The heartbeat comes from a C++ thread that neither Python's lock nor a compilation
# holds up. Dead processes and hosts are noticed sooner, by mf_jax.parallel.processes.
HEARTBEAT = 30


class Missing(ConnectionError):
    """Processes that did not arrive, or a coordinator that cannot be reached. Trying again may help."""


@contextlib.contextmanager
def joined(
    where: Place | None, facts: Mapping[str, str], explain: Callable[[Exception], tuple[str, int] | None]
) -> Iterator[Crew]:
    """The processes of a run, all there; nothing has touched a device before. Without a place, a crew of one.

    An exception in the body ends this process and, within seconds, all others: it does not leave this context, except
    in a crew of one.

    Args:
      facts: what must be the same in all processes, by name: the config, say.
      explain: the message and exit status of a user's mistake; None for other exceptions, which get a traceback.

    Raises:
      Missing: a process that did not arrive, a coordinator that cannot be reached.
      ValueError: other facts.
    """
    if where is None or where.processes == 1:
        yield Crew()
        return
    facts = {"jax": jax.__version__, **facts}
    peers = _gather(where, facts) if where.process == 0 else _report(where, facts)
    together = Crew(where.process, peers)
    try:
        # The preemption service would take SIGTERM, which Crew.stops is for.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            where.coordinator,
            where.processes,
            where.process,
            initialization_timeout=int(where.timeout),
            heartbeat_timeout_seconds=HEARTBEAT,
        )
        if jax.process_count() != where.processes:
            raise ValueError(
                f"{where.processes} processes are there, but the {jax.default_backend()} devices are those of "
                f"{jax.process_count()}; is jax installed for the accelerator on all hosts?"
            )
        yield together
    except BaseException as error:
        explained = explain(error) if isinstance(error, Exception) else None
        if explained:
            together.fail(*explained)
        together.fail(f"failed: {type(error).__name__}: {error}", 1, details=traceback.format_exc())
    together.finish()
    jax.distributed.shutdown()


def _gather(where: Place, facts: Mapping[str, str]) -> dict[int, tuple[Connection, str]]:
    """On process 0: connection and host name of all others, once all are there and of one mind."""
    arrived: dict[int, tuple[Connection, str]] = {}
    strangers: list[Connection] = []
    deadline = time.monotonic() + where.timeout
    both = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", where.port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=4096
        )
    except OSError as error:
        raise Missing(f"process 0 cannot listen on port {where.port} ({error}); give another --coordinator") from None

    def refuse(error: Exception) -> NoReturn:
        answer = {"end": str(error), "missing": isinstance(error, Missing)}
        for connection in [*strangers, *(connection for connection, _ in arrived.values())]:
            _send(connection, answer)
        raise error

    with listener:
        while len(arrived) < where.processes - 1:
            known = {connection: index for index, (connection, _) in arrived.items()}
            ready = wait([listener, *strangers, *known], max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = [str(index) for index in range(1, where.processes) if index not in arrived]
                refuse(
                    Missing(
                        f"{len(missing)} of {where.processes} processes did not arrive at {where.coordinator} within "
                        f"{where.timeout:g} s: process {', '.join(missing)}{loopback_hint(where)}"
                    )
                )
            for source in ready:
                if source is listener:
                    strangers.append(_connection(listener.accept()[0]))
                elif source in known:  # it died, and may come back
                    source.close()
                    del arrived[known[source]]
                else:
                    try:
                        hello = json.loads(source.recv_bytes(processes.LIMIT))
                        index, host = int(hello["process"]), str(hello["host"])
                        theirs, count = dict(hello["facts"]), int(hello["processes"])
                    except (EOFError, OSError, ValueError, KeyError, TypeError):
                        strangers.remove(source)  # a health check, or a port scan
                        source.close()
                        continue
                    if count != where.processes:
                        refuse(
                            ValueError(
                                f"process {index} on {host} has --processes={count}, process 0 {where.processes}"
                            )
                        )
                    if index in arrived or index == 0:
                        there = arrived[index][1] if index else socket.gethostname()
                        refuse(ValueError(f"there are two processes with --process={index}, on {there} and on {host}"))
                    if differing := [key for key in {**facts, **theirs} if facts.get(key) != theirs.get(key)]:
                        key = differing[0]
                        text = f"process {index} on {host} has {key} {theirs.get(key)}, process 0 {facts.get(key)}"
                        refuse(ValueError(f"{text}; all processes need the same command, but for --process"))
                    strangers.remove(source)
                    arrived[index] = (source, host)
    # The listener is closed: the port is free for jax.
    for connection in strangers:
        connection.close()
    for connection, _ in arrived.values():
        _send(connection, {"go": True, "host": socket.gethostname()})
    return arrived


def _report(where: Place, facts: Mapping[str, str]) -> dict[int, tuple[Connection, str]]:
    """On the other processes: the connection to process 0, once it says that all are there."""
    check_loopback(where)
    deadline = time.monotonic() + where.timeout
    while True:
        try:
            plain = socket.create_connection((where.host, where.port), max(1.0, deadline - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise Missing(
                    f"process {where.process} cannot reach the coordinator {where.coordinator} within "
                    f"{where.timeout:g} s ({error}); is process 0 running there?{loopback_hint(where)}"
                ) from None
            time.sleep(0.2)
    connection = _connection(plain)
    hello = {"process": where.process, "processes": where.processes, "host": socket.gethostname(), "facts": facts}
    _send(connection, hello)
    try:
        answer: dict[str, Any] = json.loads(connection.recv_bytes(processes.LIMIT))  # process 0 has the timeout
    except (EOFError, OSError, ValueError):
        raise Missing(
            f"process {where.process}: what answers at {where.coordinator} is not process 0 waiting for this run, or "
            "it ended; is another run still using the port?"
        ) from None
    if "end" in answer:
        raise (Missing if answer["missing"] else ValueError)(answer["end"])
    return {0: (connection, answer["host"])}


def _connection(plain: socket.socket) -> Connection:
    """With TCP's keep-alive set so that a host that is cut off breaks the connection after SILENCE seconds."""
    plain.settimeout(None)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (  # as far as the system has them
        ("TCP_KEEPIDLE", processes.SILENCE // 4),
        ("TCP_KEEPINTVL", processes.SILENCE // 4),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", processes.SILENCE * 1000),
    ):
        if hasattr(socket, option):
            plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return Connection(plain.detach())


def _send(connection: Connection, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.send_bytes(json.dumps(message).encode())
