"""Agreeing on when to stop, and the word of process 0, with threads in place of processes."""

import multiprocessing
import os
import random
import socket
import threading
import time

import pytest

from mf_jax.parallel.processes import ProcessGroup


@pytest.fixture
def groups():
    """A function count -> that many processes' groups, connected. At the end all have finished: nobody is missed."""
    made = []

    def make(count):
        ends = {index: multiprocessing.Pipe() for index in range(1, count)}
        leader = ProcessGroup(0, {index: (here, f"host{index}") for index, (here, _) in ends.items()})
        made.extend([leader, *(ProcessGroup(index, {0: (there, "host0")}) for index, (_, there) in ends.items())])
        return made

    yield make
    for group in made:
        group.finish()
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


def run(group, steps, requests, pauses, arrives, lockstep):
    """Steps as a training run does them: at `arrives` a signal comes; a collective keeps all within a step."""
    for step in range(steps):
        time.sleep(pauses[step])
        if step == arrives:
            requests.append("SIGTERM")
        if group.should_stop(requests):
            return step
        lockstep.wait()
    return steps


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_at_the_same_step(groups, seed):
    """Whoever is told, whoever is slow, and if several are told at once."""
    draw = random.Random(seed)
    together = groups(3)
    told = draw.sample(range(3), k=draw.choice([1, 1, 2, 3]))
    arrives = draw.randrange(4)
    lockstep = threading.Barrier(3)
    jobs = []
    for index, group in enumerate(together):
        pauses = [draw.choice([0.0, 0.0, 0.003]) for _ in range(4000)]
        jobs.append(lambda c=group, p=pauses, a=arrives if index in told else -1: run(c, len(p), [], p, a, lockstep))
    stopped = in_threads(jobs)
    assert len(set(stopped)) == 1 and arrives <= stopped[0] < 4000, stopped
    assert {group.stopped_by for group in together} == {together[0].stopped_by}
    assert together[0].stopped_by in {f"SIGTERM on process {index}" for index in told}


def test_a_signal_before_the_first_step_stops_after_it(groups):
    """However late the others begin: nobody has taken a step that the agreement could miss."""
    leader, other = groups(2)
    lockstep = threading.Barrier(2)
    late = [0.5, *[0.0] * 3999]
    stopped = in_threads(
        [
            lambda: run(leader, 4000, [], late, -1, lockstep),
            lambda: run(other, 4000, ["SIGINT"], [0.0] * 4000, -1, lockstep),
        ]
    )
    assert stopped[0] == stopped[1] <= 1
    assert leader.stopped_by == "SIGINT on process 1"


def test_without_a_signal_nothing_is_sent_and_nobody_stops(groups, monkeypatch):
    leader, other = groups(2)
    with monkeypatch.context() as patched:
        patched.setattr(ProcessGroup, "_send", None)
        assert not any(group.should_stop([]) for group in (leader, other) for _ in range(100))
    assert leader.stopped_by == ""


def test_a_process_by_itself_stops_at_once():
    alone = ProcessGroup()
    assert alone.is_main and alone.broadcast("word") == "word"
    assert not alone.should_stop([])
    assert alone.should_stop(["SIGTERM"])
    assert alone.stopped_by == "SIGTERM"


def test_process_0_tells_the_others_in_order(groups, capsys):
    together = groups(3)
    words = [None, 7, "lock", [1, 2]]
    jobs = [
        lambda group=group: [group.broadcast(word if group.is_main else "mine") for word in words] for group in together
    ]
    assert in_threads(jobs) == [words] * 3
    for group in together:
        group.print(f"I am {group.process}")
    assert capsys.readouterr().out == "I am 0\n"


def test_nobody_leaves_a_meeting_before_all_have_come(groups):
    together, here, left = groups(3), [], []

    def come(group):
        for meeting in range(20):
            time.sleep(random.random() / 200)
            here.append(meeting)
            group.barrier()
            left.append(here.count(meeting))

    in_threads([lambda group=group: come(group) for group in together])
    assert left == [3] * 60
    ProcessGroup().barrier()


@pytest.mark.parametrize("finished", [True, False])
def test_who_has_finished_may_go_and_nobody_else(groups, monkeypatch, finished):
    ends = []
    monkeypatch.setattr(
        ProcessGroup, "_end", lambda self, text, status, sources: ends.append((self.process, status, text))
    )
    leader, other = groups(2)
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


def test_all_processes_get_the_largest_of_each_number(groups):
    """Step by step, whoever is slow; words of process 0 in between stay in order."""
    draw = random.Random(1)
    given = [[[draw.randrange(100), draw.randrange(100)] for _ in range(20)] for _ in range(3)]

    def agree(group):
        found = []
        for step in range(20):
            time.sleep(random.random() / 300)
            found.append(group.maximum(given[group.process][step]))
            assert group.broadcast(step if group.is_main else None) == step
        return found

    expected = [tuple(max(of_one[step][i] for of_one in given) for i in range(2)) for step in range(20)]
    assert in_threads([lambda group=group: agree(group) for group in groups(3)]) == [expected] * 3
    assert ProcessGroup().maximum([3, 1]) == (3, 1)


def test_values_of_all_arrive_at_process_0_in_order(groups):
    """Twice in a row, whoever is slow; nobody else waits."""
    together = groups(3)

    def told(group):
        time.sleep(0.2 * (2 - group.process))
        return [group.gather({"of": group.process, "round": i, "third": 1 / 3}) for i in range(2)]

    results = in_threads([lambda g=group: told(g) for group in together])
    assert results[0] == [[{"of": p, "round": i, "third": 1 / 3} for p in range(3)] for i in range(2)]
    assert results[1] == results[2] == [[], []]
    assert ProcessGroup().gather(5) == [5]
