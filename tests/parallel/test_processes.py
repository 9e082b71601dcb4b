"""Agreeing on when to stop, and the word of process 0, with threads in place of processes."""

import multiprocessing
import os
import random
import signal
import socket
import threading
import time

import pytest

from mf_jax.parallel.processes import Crew


@pytest.fixture
def crews():
    """A function count -> that many processes' crews, connected. At the end all have finished: nobody is missed."""
    made = []

    def make(count):
        ends = {index: multiprocessing.Pipe() for index in range(1, count)}
        leader = Crew(0, {index: (here, f"host{index}") for index, (here, _) in ends.items()})
        made.extend([leader, *(Crew(index, {0: (there, "host0")}) for index, (_, there) in ends.items())])
        return made

    yield make
    for crew in made:
        crew.finish()
    time.sleep(0.05)


def in_threads(functions):
    results = {}
    threads = [
        threading.Thread(target=lambda i=i, f=f: results.update({i: f()}), daemon=True) for i, f in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [results.get(i) for i in range(len(functions))]


def run(crew, steps, signals, pauses, arrives, lockstep):
    """Steps as a training run does them: at `arrives` the signal comes; a collective keeps all within a step."""
    for step in range(steps):
        time.sleep(pauses[step])
        if step == arrives:
            signals.append(signal.SIGTERM)
        if crew.stops(signals):
            return step
        lockstep.wait()
    return steps


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_at_the_same_step(crews, seed):
    """Whoever is told, whoever is slow, and if several are told at once."""
    draw = random.Random(seed)
    together = crews(3)
    told = draw.sample(range(3), k=draw.choice([1, 1, 2, 3]))
    arrives = draw.randrange(4)
    lockstep = threading.Barrier(3)
    jobs = []
    for index, crew in enumerate(together):
        pauses = [draw.choice([0.0, 0.0, 0.003]) for _ in range(4000)]
        jobs.append(lambda c=crew, p=pauses, a=arrives if index in told else -1: run(c, len(p), [], p, a, lockstep))
    stopped = in_threads(jobs)
    assert len(set(stopped)) == 1 and arrives <= stopped[0] < 4000, stopped
    assert {crew.stopped_by for crew in together} == {together[0].stopped_by}
    assert together[0].stopped_by in {f"SIGTERM to process {index}" for index in told}


def test_a_signal_before_the_first_step_stops_after_it(crews):
    """However late the others begin: nobody has taken a step that the agreement could miss."""
    leader, other = crews(2)
    lockstep = threading.Barrier(2)
    late = [0.5, *[0.0] * 3999]
    stopped = in_threads(
        [
            lambda: run(leader, 4000, [], late, -1, lockstep),
            lambda: run(other, 4000, [signal.SIGINT], [0.0] * 4000, -1, lockstep),
        ]
    )
    assert stopped[0] == stopped[1] <= 1
    assert leader.stopped_by == "SIGINT to process 1"


def test_without_a_signal_nothing_is_sent_and_nobody_stops(crews, monkeypatch):
    leader, other = crews(2)
    with monkeypatch.context() as patched:
        patched.setattr(Crew, "_send", None)
        assert not any(crew.stops([]) for crew in (leader, other) for _ in range(100))
    assert leader.stopped_by == ""


def test_a_process_by_itself_stops_at_once():
    alone = Crew()
    assert alone.leads and alone.tell("word") == "word"
    assert not alone.stops([])
    assert alone.stops([signal.SIGTERM])
    assert alone.stopped_by == "SIGTERM"


def test_process_0_tells_the_others_in_order(crews, capsys):
    together = crews(3)
    words = [None, 7, "lock", [1, 2]]
    jobs = [lambda crew=crew: [crew.tell(word if crew.leads else "mine") for word in words] for crew in together]
    assert in_threads(jobs) == [words] * 3
    for crew in together:
        crew.say(f"I am {crew.process}")
    assert capsys.readouterr().out == "I am 0\n"


def test_nobody_leaves_a_meeting_before_all_have_come(crews):
    together, here, left = crews(3), [], []

    def come(crew):
        for meeting in range(20):
            time.sleep(random.random() / 200)
            here.append(meeting)
            crew.meet()
            left.append(here.count(meeting))

    in_threads([lambda crew=crew: come(crew) for crew in together])
    assert left == [3] * 60
    Crew().meet()


@pytest.mark.parametrize("finished", [True, False])
def test_who_has_finished_may_go_and_nobody_else(crews, monkeypatch, finished):
    ends = []
    monkeypatch.setattr(Crew, "_end", lambda self, text, status, sources: ends.append((self.process, status, text)))
    leader, other = crews(2)
    leader.finish()
    if finished:
        other.finish()
        time.sleep(0.3)
    with socket.socket(fileno=os.dup(other._peers[0].fileno())) as connection:
        connection.shutdown(socket.SHUT_WR)
    leader._thread.join(10)
    assert not leader._thread.is_alive()
    if finished:
        assert ends == []
    else:
        assert [end[:2] for end in ends] == [(0, 1)] and "process 1 on host1 has died" in ends[0][2]
