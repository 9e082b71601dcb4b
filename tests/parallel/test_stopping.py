"""Signals and closed outputs: what is noted, what still ends the process, and that nothing raises."""

import io
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from mf_jax.parallel.stopping import GuardedStream, guarded_output, readable_output, stop_requests

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def broken():
    """A text stream to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        yield stream


def test_a_broken_stream_is_noted_once_and_then_goes_nowhere(broken):
    notes = []
    stream = GuardedStream(broken, lambda: notes.append(1))
    assert stream.write("kept in the buffer") == 18 and not stream.broken
    for _ in range(2):
        stream.flush()
        stream.write("more\n")
        stream.writelines(["and\n", "more\n"])
    assert notes == [1] and stream.broken
    os.write(broken.fileno(), b"of a library")
    broken.flush()
    assert not stream.isatty() and stream.fileno() == broken.fileno()


def test_a_full_device():
    notes = []
    with open("/dev/full", "w") as full:
        print("text", file=GuardedStream(full, lambda: notes.append(1)), flush=True)
    assert notes == [1]


def test_a_closed_file_and_a_stream_without_a_descriptor():
    class Failing(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    closed = io.StringIO()
    closed.close()
    for stream in (closed, Failing()):
        notes = []
        guarded = GuardedStream(stream, lambda notes=notes: notes.append(1))
        print("text", file=guarded, flush=True)
        print("text", file=guarded, flush=True)
        assert notes == [1]


def test_what_the_encoding_lacks_is_no_closed_output():
    notes = []
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as stream, pytest.raises(UnicodeEncodeError):
        GuardedStream(stream, lambda: notes.append(1)).write("\u2713")
    assert notes == []


def test_what_works_is_passed_on_and_the_streams_are_put_back(capsys):
    before, requests = (sys.stdout, sys.stderr), []
    with guarded_output(requests):
        print("out")
        print("err", file=sys.stderr)
        assert readable_output() is sys.stdout
    assert (sys.stdout, sys.stderr) == before and requests == []
    assert capsys.readouterr() == ("out\n", "err\n")


def test_what_matters_is_printed_where_it_can_be_read(broken, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", broken)
    requests = []
    with guarded_output(requests):
        print("lost", flush=True)
        print("last word", file=readable_output())
    assert requests == ["closed output"]
    assert capsys.readouterr().err == "last word\n"


# Prints in all the ways that a run does, notes in a file what came of it, and leaves text in the buffers.
PRINTING = """
import logging, os, pathlib, sys
import absl.logging
from tqdm import tqdm
from mf_jax.parallel.stopping import guarded_output

how, path = sys.argv[1:]
if how == "old handler":
    logging.basicConfig()  # as absl does at its first message
requests = []
with guarded_output(requests):
    if "handler" in how:
        absl.logging.warning("slow")
    elif how == "bar":
        for _ in tqdm(range(3), file=sys.stdout):
            pass
    elif how == "print":
        print("left in the buffer")
pathlib.Path(path).write_text(str(requests))
"""


@pytest.mark.parametrize("how", ["handler", "old handler", "bar", "print"])
@pytest.mark.parametrize("output", ["pipe", "full", "none"])
def test_however_it_is_printed_it_is_noted_and_the_status_is_0(tmp_path, how, output):
    """Python's flush at exit included, which ends with status 120 where it fails."""
    reader, writer = os.pipe()
    os.close(reader)
    redirection = {"pipe": f"1>&{writer} 2>&{writer}", "full": ">/dev/full 2>&1", "none": "1>&- 2>&-"}[output]
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-c", PRINTING, how]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    run = subprocess.run([*command, str(tmp_path / "noted")], env=environment, pass_fds=[writer], timeout=60)
    os.close(writer)
    assert run.returncode == 0
    noted = (tmp_path / "noted").read_text()
    if output == "none":  # as it was asked for
        assert noted == "[]"
    else:
        assert noted.startswith("['closed output'")


@pytest.fixture
def handled():
    """Signals that reach a handler of this test, and the handlers put back afterwards."""
    numbers, received = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), []
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    yield received
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_is_not_kept_from_the_process(handled, number):
    with stop_requests() as requests:
        signal.raise_signal(number)
        assert requests == [number.name] and handled == []
        signal.raise_signal(number)
    assert requests == [number.name] and handled == [number]
    signal.raise_signal(number)
    assert handled == [number] * 2


def test_a_closing_terminal_may_send_several_hangups(handled):
    with stop_requests() as requests:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert requests[0] == "SIGHUP" and handled == []
    signal.raise_signal(signal.SIGHUP)
    assert handled == [signal.SIGHUP]


def test_under_nohup_a_hangup_stays_ignored(handled):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_requests() as requests:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.raise_signal(signal.SIGHUP)
    assert requests == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
