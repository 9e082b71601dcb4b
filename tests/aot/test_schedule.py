"""Times of hand-written programs, worked out by hand.

The chip does 1e12 FLOP/s, moves 1e9 bytes/s, receives 1e8 bytes/s over the links of its 2 axes together, and counts 1e9
cycles/s. So 1000 bytes in memory take 1 us, 100 bytes on the links 1 us by the roofline and 2 us over one axis, and
1000 cycles 1 us.
"""

import pytest

from mf_jax.aot.hlo import parse
from mf_jax.aot.schedule import ATTENTION, COLLECTIVES, OTHER, PRODUCTS, Times, schedule
from mf_jax.monitoring.chips import GIB, Chip

CHIP = Chip("toy", "tpu", 2, hbm=8 * GIB, hbm_bandwidth=1e9, link_bandwidth=1e8, clock=1e9, attention=(0.5, 0.25))
US = 1e-6


def times(seconds):
    return pytest.approx((seconds.roofline / US, seconds.cycles / US))


def run(body, computations="", chip=CHIP, slices=(0, 0)):
    """The schedule of a program with these lines; x has 500 bytes in memory, g 200 bytes in another memory."""
    text = f"""HloModule m
{computations}
ENTRY main (x: u8[500], g: u8[200]) -> u8[500] {{
  x = u8[500]{{0}} parameter(0)
  g = u8[200]{{0:S(1)}} parameter(1)
{body}
  ROOT end = u8[500]{{0}} bitcast(x)
}}
"""
    return schedule(parse(text), chip, 1e12, slices)


def work(name, cycles=None):
    """An instruction that reads and writes 500 bytes: 1 us by the roofline."""
    estimate = "" if cycles is None else f', backend_config={{"estimated_cycles":"{cycles}"}}'
    return f'  {name} = u8[500]{{0}} negate(x), metadata={{op_name="jit(f)/jvp(Net)/a/neg"}}{estimate}\n'


def test_both_figures():
    """1 us each by the roofline; the compiler says 3 us of one and nothing of the other, whose roofline stands in."""
    found = run(work("one", 3000) + work("two"))
    assert times(found.total()) == (2, 4)
    assert [entry.estimated for entry in found.entries] == [True, False]
    assert found.without_estimate == pytest.approx(1 * US)
    assert found.entries[0].bytes == 1000 and found.entries[0].kind == OTHER


def test_a_sentinel_is_no_estimate():
    found = run(work("one", 3000) + work("two", 2**63 - 1))
    assert times(found.total()) == (2, 4)
    assert found.sentinels == 1


def test_no_clock():
    """GPUs: the roofline takes the place of cycles that nobody can read as time."""
    found = run(work("one", 3000), chip=Chip("gpu", "cuda", 3, 1.0, 1e9, 1e8))
    assert times(found.total()) == (1, 1)


def test_product():
    """2 x 1000 x 1000 x 1000 FLOPs take 2 ms, its 6 MB 6 ms; the compiler says 1 ms."""
    found = run(
        "  a = bf16[1000,1000]{1,0} constant({...})\n"
        "  p = bf16[1000,1000]{1,0} dot(a, a), lhs_contracting_dims={1}, rhs_contracting_dims={0}, "
        'backend_config={"estimated_cycles":"1000000"}'
    )
    (entry,) = found.entries
    assert (entry.kind, entry.flops, entry.bytes) == (PRODUCTS, 2 * 10**9, 6 * 10**6)
    assert times(found.total()) == (6000, 1000)


@pytest.mark.parametrize(
    ("name", "products", "us"), [("splash_mha_fwd", 2, 3072), ("splash_mha_dq", 3, 9216), ("splash_mha_dkv", 4, 12288)]
)
def test_attention_runs_at_a_share_of_the_peak(name, products, us):
    """B 2, H 3, N 1000, E 64 by as many keys: products of 2 x 384e6 FLOPs at half of the peak forward, a quarter of it
    backward, nothing in memory."""
    shape = "bf16[2,3,1000,64]{3,2,1,0:S(1)}"
    lines = f"  q = {shape} constant({{...}})\n"
    lines += f'  {name}.1 = {shape} custom-call(q, q, q), custom_call_target="tpu_custom_call"'
    found = run(lines)
    (entry,) = found.entries
    assert entry.kind == ATTENTION and entry.flops == products * 2 * 2 * 3 * 1000 * 1000 * 64
    assert times(found.total()) == (us, us)
    assert not found.unknown and found.without_estimate == pytest.approx(us * US)


@pytest.mark.parametrize(
    ("name", "results", "products"),
    [
        ("splash_mha_dq.1", "f32[2,3,50,64], f32[2,50,128]", 3),
        ("splash_mha_dkv.1", "f32[2,50,128], bf16[2,3,50,64], bf16[2,3,50,64]", 4),
        ("splash_mha_dkv.1", "f32[2,50,128], bf16[2,1,3,50,64], bf16[2,3,50,64], bf16[2,3,50,64]", 5),
    ],
)
def test_kernels_of_the_backward_pass(name, results, products):
    """Keys and values of the size of the queries do not pass for their gradient."""
    lines = "  q = bf16[2,3,50,64]{3,2,1,0} constant({...})\n"
    found = run(lines + f'  {name} = ({results}) custom-call(q, q, q), custom_call_target="tpu_custom_call"')
    assert found.entries[0].flops == products * 2 * 2 * 3 * 50 * 50 * 64


def test_an_unknown_kernel_counts_by_its_bytes():
    found = run('  mine.1 = u8[500]{0} custom-call(x), custom_call_target="tpu_custom_call"')
    assert found.unknown == ("mine.1",)
    assert times(found.total((ATTENTION,))) == (1, 1)


GATHER = "all-gather(g), replica_groups={{0,1}}, dimensions={0}"  # 200 of 400 bytes are received: 2 us, 4 us


def test_synchronous_collective():
    found = run(work("one") + f"  all = u8[400]{{0:S(1)}} {GATHER}\n" + work("two"))
    assert times(found.total((COLLECTIVES,))) == (2, 4)
    assert times(found.total()) == (4, 6)
    assert [(e.name, e.bytes) for e in found.entries if e.kind == COLLECTIVES] == [("all-gather", 200)]


START = f"  start = (u8[200]{{0:S(1)}}, u8[400]{{0:S(1)}}) {GATHER.replace('all-gather', 'all-gather-start')}\n"
DONE = "  all = u8[400]{0:S(1)} all-gather-done(start)\n"


def test_fully_hidden():
    """Beside 5 us of work."""
    found = run(START + "".join(work(f"w{i}") for i in range(5)) + DONE)
    assert times(found.total((COLLECTIVES,))) == (0, 0)
    assert times(found.total()) == (5, 5)
    assert times(found.links) == (2, 4)


def test_partly_hidden():
    """Beside 1 us, or 1.5 us by the cycles: 1 and 2.5 us are left."""
    found = run(START + work("one", 1500) + DONE + work("two", 1500))
    assert times(found.total((COLLECTIVES,))) == (1, 2.5)
    assert times(found.total()) == (3, 5.5)


def test_two_share_the_links():
    """Both start at once, the second waits for the first: they end at 2 and 4 us (4 and 8), with 1 us of work done."""
    second = START.replace("start = ", "start.2 = "), DONE.replace("all = ", "all.2 = ").replace("(start)", "(start.2)")
    found = run(START + second[0] + work("one") + DONE + second[1])
    exposed = [entry.seconds for entry in found.entries if entry.kind == COLLECTIVES]
    assert times(exposed[0]) == (1, 3)
    assert times(exposed[1]) == (2, 4)
    assert times(found.total()) == (4, 8)


def test_asynchronous_computation():
    """`async-start` around a collective, with an update between start and end; the links are free again by then."""
    inside = f"""inner (g.1: u8[200]) -> u8[400] {{
  g.1 = u8[200]{{0:S(1)}} parameter(0)
  ROOT all.1 = u8[400]{{0:S(1)}} {GATHER.replace("(g)", "(g.1)")}
}}"""
    shape = "((u8[200]{0:S(1)}), u8[400]{0:S(1)})"
    found = run(
        f"  start = {shape} async-start(g), calls=inner\n"
        + work("one")
        + f"  more = {shape} async-update(start)\n"
        + "  all = u8[400]{0:S(1)} async-done(more)\n"
        + work("two"),
        inside,
    )
    assert times(found.total((COLLECTIVES,))) == (1, 3)


def fusion(name, text):
    """A fusion's computation with a collective of chain 7 inside."""
    return f"""{name} (g.1: u8[200]) -> u8[400] {{
  g.1 = u8[200]{{0:S(1)}} parameter(0)
  all.1 = u8[400]{{0:S(1)}} {GATHER.replace("(g)", "(g.1)")}, frontend_attributes={{chain_id="7"}}
  ROOT r = u8[400]{{0:S(1)}} {text}
}}
"""


def test_chain_of_fusions():
    """The TPU compiler's form: start, a fusion of 1.2 us that carries the collective along, end."""
    computations = (
        fusion("first", 'custom-call(all.1), custom_call_target="AsyncCollectiveStart"')
        + fusion("middle", "negate(all.1)")
        + fusion("last", 'custom-call(all.1), custom_call_target="AsyncCollectiveDone"')
    )
    found = run(
        "  s = u8[400]{0:S(1)} fusion(g), kind=kCustom, calls=first\n"
        '  m = u8[400]{0:S(1)} fusion(g), kind=kCustom, calls=middle, backend_config={"estimated_cycles":"1200"}\n'
        "  e = u8[400]{0:S(1)} fusion(g), kind=kCustom, calls=last\n" + work("one"),
        computations,
    )
    assert times(found.total((COLLECTIVES,))) == (2, 2.8)
    assert times(found.total((OTHER,))) == (1, 2.2)
    assert times(found.links) == (2, 4)


LOOP = """condition (s: (s32[], u8[500])) -> pred[] {
  s = (s32[], u8[500]{0}) parameter(0)
  ROOT go = pred[] constant(true)
}
body (s.1: (s32[], u8[500])) -> (s32[], u8[500]) {
  s.1 = (s32[], u8[500]{0}) parameter(0)
  x = u8[500]{0} get-tuple-element(s.1), index=1
  g.1 = u8[200]{0:S(1)} constant({...})
  start = (u8[200]{0:S(1)}, u8[400]{0:S(1)}) all-gather-start(g.1), replica_groups={{0,1}}, dimensions={0}
WORK  ROOT t = (s32[], u8[500]{0}) tuple(x, x)
}
""".replace("WORK", work("one"))


def test_loop():
    """Seven rounds of 1 us; what a round has started and not ended is waited for at its end: 1 and 3 us more."""
    lines = (
        "  t = (s32[], u8[500]{0}) tuple(x, x)\n  loop = (s32[], u8[500]{0}) while(t), condition=condition, body=body"
    )
    known = lines + ', backend_config={"known_trip_count":{"n":"7"}}'
    found = run(known, LOOP)
    assert times(found.total()) == (14, 28)
    assert {entry.count for entry in found.entries} == {7}
    assert [entry.bytes for entry in found.entries] == [7000, 1400]
    assert times(found.links) == (14, 28)
    assert found.unknown_loops == 0
    found = run(lines, LOOP)
    assert times(found.total()) == (2, 4) and found.unknown_loops == 1


def test_between_slices():
    """Counted, without time: that network is not the chip's."""
    found = run(f"  all = u8[400]{{0:S(1)}} {GATHER}\n", slices=(0, 1))
    assert times(found.total()) == (0, 0)
    assert found.crossing == 1 and found.entries[0].bytes == 200


def test_times():
    assert Times(1, 5).later(Times(2, 3)) == Times(2, 5)
    assert Times(3, 5) - Times(1, 1) * 2 == Times(1, 3)
