"""The wait until all processes are there, with threads in place of processes; tests/multihost has real ones."""

import json
import socket
import struct
import threading
import time

import pytest

from mf_jax.parallel.cluster import ClusterSpec
from mf_jax.parallel.distributed import Missing, _accept_all, _connect_to_main


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Meeting:
    """Processes that meet at a port, each a thread; `results` by name: what they returned or raised."""

    def __init__(self, processes, timeout=20.0):
        self.address, self.processes, self.timeout = f"127.0.0.1:{free_port()}", processes, timeout
        self.results, self._threads = {}, []

    def come(self, process, name=None, must_match=None, processes=None):
        where = ClusterSpec(self.address, processes or self.processes, process, self.timeout)

        def run():
            try:
                connect = _connect_to_main if process else _accept_all
                found = connect(where, {"seed": "1"} | (must_match or {}))
            except Exception as error:
                found = error
            self.results[process if name is None else name] = found

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def wait(self):
        for thread in self._threads:
            thread.join(30)
        return self.results


def test_all_arrive_in_any_order():
    meeting = Meeting(4)
    for process in (3, 1, 0, 2):
        meeting.come(process)
        time.sleep(0.1)
    results = meeting.wait()
    assert sorted(results[0]) == [1, 2, 3]
    assert {host for _, host in results[0].values()} == {socket.gethostname()}
    for process in (1, 2, 3):
        (connection, host), (back, _) = results[process][0], results[0][process]
        assert host == socket.gethostname()
        back.send_bytes(b"to %d" % process)
        assert connection.recv_bytes() == b"to %d" % process
    again = Meeting(2)  # the port is free for jax while the connections stand
    again.address = meeting.address
    again.come(0)
    again.come(1)
    assert sorted(again.wait()[0]) == [1]


def test_who_is_missing_is_named_everywhere():
    meeting = Meeting(5, timeout=1.5)
    for process in (0, 1, 3):
        meeting.come(process)
    results = meeting.wait()
    for process in (0, 1, 3):
        assert isinstance(results[process], Missing)
        assert f"2 of 5 processes did not arrive at {meeting.address} within 1.5 s: process 2, 4" in str(
            results[process]
        )


def test_a_coordinator_that_is_not_there():
    meeting = Meeting(2, timeout=0.5)
    start = time.monotonic()
    meeting.come(1)
    error = meeting.wait()[1]
    assert 0.5 <= time.monotonic() - start < 10
    assert isinstance(error, Missing)
    assert f"process 1 cannot reach the coordinator {meeting.address} within 0.5 s" in str(error)
    assert "Connection refused" in str(error) and "an address that each host has for itself" in str(error)


def test_another_service_at_the_address():
    meeting = Meeting(2)
    with socket.create_server(("127.0.0.1", int(meeting.address.partition(":")[2]))) as server:
        meeting.come(1)
        other, _ = server.accept()
        other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        other.close()
        error = meeting.wait()[1]
    assert isinstance(error, Missing) and f"what answers at {meeting.address} is not process 0" in str(error)


def connect(meeting):
    host, port = meeting.address.split(":")
    while True:
        try:
            return socket.create_connection((host, int(port)))
        except ConnectionRefusedError:
            time.sleep(0.05)


def test_port_scans_and_a_process_that_dies_and_comes_back():
    meeting = Meeting(3)
    meeting.come(0)
    hello = json.dumps({"process": 2, "processes": 3, "host": "h", "must_match": {"seed": "1"}}).encode()
    for sent in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\2{}",
        b"\0\0\0\5false",
        b"",
        struct.pack("!i", len(hello)) + hello,
    ):
        with connect(meeting) as connection:
            connection.sendall(sent)
            time.sleep(0.1)
    meeting.come(1)
    time.sleep(0.3)
    assert 0 not in meeting.results  # it does not take the dead one for present
    meeting.come(2)
    assert sorted(meeting.wait()[0]) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"must_match": {"seed": "2"}}, "has seed 2, process 0 1; all processes need the same command"),
        ({"must_match": {"steps": "3"}}, "has steps 3, process 0 None"),
        ({"processes": 4}, "has --processes=4, process 0 3"),
        ({"process": 1}, "there are two processes with --process=1"),
    ],
)
def test_processes_that_do_not_belong_together(changes, message):
    meeting = Meeting(3)
    meeting.come(0)
    meeting.come(1, name="first")
    time.sleep(0.3)
    meeting.come(**{"process": 2, "name": "odd"} | changes)
    results = meeting.wait()
    for name in (0, "first", "odd"):
        assert isinstance(results[name], ValueError) and message in str(results[name]), name


def test_a_port_that_is_taken():
    meeting = Meeting(2)
    with socket.create_server(("", int(meeting.address.partition(":")[2]))):
        meeting.come(0)
        error = meeting.wait()[0]
    assert isinstance(error, Missing) and "process 0 cannot listen on port" in str(error)
