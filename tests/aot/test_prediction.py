"""The lines of the prediction, from entries whose numbers are worked out by hand; the places of instructions."""

import pytest

from mf_jax.aot.places import AGAIN, BACKWARD, FORWARD, LOOP, UPDATE, Place, place
from mf_jax.aot.prediction import ROWS, Prediction, places_table, prediction_report, rows
from mf_jax.aot.schedule import ATTENTION, COLLECTIVES, OTHER, PRODUCTS, Entry, Schedule, Times
from mf_jax.monitoring.chips import GIB, Chip

CHIP = Chip("toy", "tpu", 2, hbm=8 * GIB, hbm_bandwidth=1e9, link_bandwidth=1e8, clock=1e9, attention=(0.4, 0.7))
FORWARD_Q = "jit(train_step)/jvp(Net)/while/body/closed_call/trunk/q/bnc,che->bhne/dot_general"
BACKWARD_Q = "jit(train_step)/transpose(jvp(Net))/while/body/closed_call/checkpoint/trunk/q/dot_general"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (FORWARD_Q, Place("Net", "trunk/q", FORWARD)),
        (BACKWARD_Q, Place("Net", "trunk/q", BACKWARD)),
        (
            "jit(f)/transpose(jvp(Net))/while/body/closed_call/rematted_computation/trunk/q/dot_general",
            Place("Net", "trunk/q", AGAIN),
        ),
        ("jit(f)/jvp(Net)/while/body/trunk/shard_map/vmap(s)/jit(a)/mha/mha/call", Place("Net", "trunk/mha", FORWARD)),
        ("jit(f)/jvp(Net)/while/body/jit(dynamic_index_in_dim)/squeeze", Place("Net", LOOP, FORWARD)),
        ("jit(f)/jvp(Net)/Net._modulation/image/add", Place("Net", "image", FORWARD)),
        ("jit(f)/jvp(Net)/concatenate", Place("Net", "", FORWARD)),
        ("jit(f)/while/body/closed_call/jvp(Net)/while/body/trunk/mul", Place("Net", "trunk", FORWARD)),
        ("jit(f)/Encoder/block/0/k/dot_general", Place("Encoder", "block/k", FORWARD)),
        ("jit(f)/jvp()/mul", Place("", "", FORWARD)),
        ("jit(f)/vmap(jit(_uniform))/xor", Place("", "", UPDATE)),
        ("jit(f)/(jvp(Net)/text_in/dot_general:jvp(Net)/trunk/q/dot_general)", Place("Net", "text_in", FORWARD)),
        ("jit(f)/jvp(Net)/trunk/(k/dot_general:v/dot_general)", Place("Net", "trunk/k", FORWARD)),
        ("state.params['backbone']['trunk']", Place("", "", UPDATE)),
        ("", Place("", "", UPDATE)),
    ],
)
def test_places(path, expected):
    assert place(path) == expected


def entry(kind, path, flops, size, roofline, cycles, estimated=True):
    return Entry(kind, path, "name.1", 1, flops, size, Times(roofline, cycles), estimated)


ENTRIES = (
    entry(PRODUCTS, FORWARD_Q, 30 * 10**9, 5 * 10**6, 0.03, 0.04),
    entry(PRODUCTS, FORWARD_Q, 10 * 10**9, 5 * 10**6, 0.01, 0.04),
    entry(PRODUCTS, BACKWARD_Q, 80 * 10**9, 2 * 10**7, 0.1, 0.16),
    entry(ATTENTION, "jit(f)/jvp(Net)/while/body/trunk/mha/call", 10**10, 10**6, 0.025, 0.025, False),
    entry(OTHER, "jit(f)/mul", 0, 10**7, 0.01, 0.03),
    entry(OTHER, "jit(f)/jvp(Encoder)/block/mul", 0, 10**7, 0.005, 0.01),
    entry(COLLECTIVES, BACKWARD_Q, 0, 10**6, 0.02, 0.045, False),
)
SCHEDULE = Schedule(ENTRIES, Times(0.04, 0.08), 3, ("mine.1",), 2, 1)


def test_report():
    """0.2 and 0.35 s, of which the model's FLOPs at the peak take 0.1; 20 % of 0.35 are not the compiler's figure."""
    predicted = Prediction(SCHEDULE, 0.1, frozenset({"Net"}))
    assert predicted.seconds == Times(pytest.approx(0.2), pytest.approx(0.35))
    assert predicted.mfu == Times(pytest.approx(0.5), pytest.approx(2 / 7))
    assert predicted.frozen == Times(0.005, 0.01)
    lines = list(prediction_report(predicted, CHIP, 1e12))
    assert lines[0] == "predicted step: 200 to 350 ms, MFU 28.6 to 50.0 %"
    parts = {" ".join(line.split()) for line in lines[1:12]}
    assert parts >= {
        "matrix products 140.0 240.0",
        "attention 25.0 25.0 kernels at an assumed 40% of the peak forward, 70% backward",
        "everything else 15.0 40.0",
        "exposed collectives 20.0 45.0 of 40.0 to 80.0 on the links",
        "frozen networks, of these 5.0 10.0",
        "the compiler estimates no kernels, collectives and copies: 20% of its figure is by the roofline",
        '3 instructions whose estimate stands for "unknown" are counted by the roofline',
        "kernels whose FLOPs are not known, counted by their bytes alone: mine.1",
        "2 collectives between slices or nodes are counted as taking no time",
        "1 loops whose rounds are not known are counted as one round",
    }
    text = "\n".join(lines)
    assert "a prediction, until a chip says otherwise" in text
    assert "time between instructions" in text and "loading of data" in text


def test_nothing_to_add():
    found = Schedule(ENTRIES[:3], Times(), 0, (), 0, 0)
    text = "\n".join(prediction_report(Prediction(found, 0.1, frozenset({"Net"})), CHIP, 1e12))
    for absent in ("frozen", "unknown", "not known", "slices are counted"):
        assert absent not in text


def test_table():
    """The costliest first; both products of a place in one row: 40 of 40 ms at the peak, and of 80 by the cycles."""
    lines = [" ".join(line.split()) for line in places_table(ENTRIES, {"Net"}, 1e12)]
    assert lines[2:] == [
        "trunk/q backward product 100.0 160.0 80% 50%",
        "trunk/q forward product 40.0 80.0 100% 50%",
        "trunk/q backward collective 20.0 45.0",
        "trunk/mha forward attention 25.0 25.0 40% 40%",
        "outside of networks update other 10.0 30.0",
        "Encoder: block forward other 5.0 10.0",
    ]


def test_table_without_times():
    lines = [" ".join(line.split()) for line in places_table(ENTRIES, {"Net"}, None)]
    assert lines[1:3] == ["part GFLOP GB", "trunk/q backward product 80.00 0.020"]
    assert lines[3] == "trunk/q forward product 40.00 0.010"


def test_long_table():
    """What is left of it is in one line."""
    many = [entry(OTHER, f"jit(f)/jvp(Net)/part_{'x' * 50}_{i}/mul", 0, 1, 0.001, 0.002) for i in range(ROWS + 2)]
    lines = list(places_table(many, {"Net"}, 1e12))
    assert len(lines) == 2 + ROWS + 1
    assert lines[-1].split() == ["2", "more", "2.0", "4.0"]
    assert lines[2].split()[0] == "..." + f"part_{'x' * 50}_0"[-42:]
    assert len(rows(many)) == ROWS + 2
