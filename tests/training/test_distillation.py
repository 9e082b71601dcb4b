"""Self-distillation: the student's image velocity is held near that of the model that it started from (eq. 8).

The network is a toy, y = w x_t, whose loss is known in closed form.

Legend: B batch, N tokens, C channels per token.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mf_jax.config.loading import resolve
from mf_jax.joint_model import JointModel, build_model
from mf_jax.parallel import sharding
from mf_jax.training import train_state, train_step
from mf_jax.training.config import ObjectiveConfig
from mf_jax.training.train_state import TrainState

SEED = 7
STUDENT, TEACHER = {"image": 0.3, "depth": 0.6}, {"image": 0.8, "depth": -5.0}
HIGH, LOW = 0.7, 0.2


@dataclasses.dataclass(frozen=True)
class Echo(JointModel):
    """A joint model whose network is `params` times its input, and that keeps what it was shown when traced."""

    shown: list = dataclasses.field(default_factory=list, compare=False)

    def predict(self, params, x, t, fields):
        self.shown.append((x, t, fields["text_ids"]))
        return {name: params[name] * x[name] for name in x}


@pytest.fixture(params=["x", "v"])
def model(request, tiny_config):
    """With each kind of prediction of the image."""
    tiny_config["modalities"]["image"] |= dict(prediction=request.param, weight=3.0)
    return build_model(resolve(tiny_config))


def compiled(model, accumulate=1, **weights):
    """(batch, step, teacher) -> ((loss, gradient, statistics), what each network was shown, the student first)."""
    echo = Echo(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    objective = ObjectiveConfig(**weights)

    def run(student, teacher, batch, step):
        result = train_step.loss_and_gradient(echo, objective, SEED, accumulate, {}, student, {}, batch, step, teacher)
        return result, echo.shown if accumulate == 1 else ()

    jitted = jax.jit(run)
    return lambda batch, step, teacher=TEACHER: jax.tree.map(np.asarray, jitted(STUDENT, teacher, batch, step))


def by_hand(model, x, t, student=STUDENT["image"]):
    """Float64: sum over the images that are not clean of weight_B |v_student - v_teacher|^2, by example."""
    apart = (student - TEACHER["image"]) * x["image"].astype(np.float64)
    if model.modalities["image"].prediction == "x":
        apart = apart / np.maximum(t["image"], 0.05)[:, None, None]
    weight_B = HIGH * t["depth"].astype(np.float64) + LOW * (1.0 - t["depth"])
    return np.where(t["image"] > 0, weight_B * np.sum(apart**2, axis=(1, 2)), 0.0)


def test_loss_and_gradient_by_hand(model, make_batch):
    """What it adds to the loss without it, over steps in which all three modes occur."""
    batch = make_batch(8)
    distilled, plainly = compiled(model, distill_high=HIGH, distill_low=LOW), compiled(model)
    modes = set()
    for step in range(3):
        (value, gradient, statistics), ((x, t, _), _) = distilled(batch, step)
        (plain, plain_gradient, _), _ = plainly(batch, step)
        per_entry = 3.0 / (np.sum(t["image"] > 0) * x["image"][0].size)
        expected = {w: per_entry * by_hand(model, x, t, w).sum() for w in (STUDENT["image"], -0.7)}
        assert float(value - plain) == pytest.approx(expected[STUDENT["image"]], rel=1e-4)
        # A parabola in the student's w about the teacher's: its slope is 2 (w - w_teacher) times its curvature.
        curvature = expected[-0.7] / (-0.7 - TEACHER["image"]) ** 2
        slope = 2 * (STUDENT["image"] - TEACHER["image"]) * curvature
        assert float(gradient["image"] - plain_gradient["image"]) == pytest.approx(slope, rel=1e-3)
        assert set(gradient) == set(STUDENT) and float(gradient["depth"]) == float(plain_gradient["depth"])
        total = float(statistics["sum"][train_step.DISTILL].sum())
        assert total == pytest.approx(by_hand(model, x, t).sum(), rel=1e-4)
        modes |= {(a > 0, b > 0) for a, b in zip(t["image"].tolist(), t["depth"].tolist(), strict=True)}
    assert len(modes) == 3


def test_the_teacher_sees_the_noised_image_alone(model, make_batch):
    _, ((x, t, ids), (teacher_x, teacher_t, teacher_ids)) = compiled(model, distill_high=HIGH)(make_batch(8), 1)
    assert set(teacher_x) == set(teacher_t) == {"image"} and set(x) == {"image", "depth"}
    np.testing.assert_array_equal(teacher_x["image"], x["image"])
    np.testing.assert_array_equal(teacher_t["image"], t["image"])
    np.testing.assert_array_equal(teacher_ids, ids)


@pytest.mark.parametrize(
    ("weights", "silent"), [(dict(distill_high=HIGH), {"i2d", "d2i"}), (dict(distill_low=LOW), {"i2d"})]
)
def test_by_mode(weights, silent, model, make_batch):
    """Nothing where the image is given; where the depth is, at the low weight alone."""
    batch, run = make_batch(8), compiled(model, **weights)
    rows = sum(run(batch, step)[0][2]["sum"][train_step.DISTILL] for step in range(3))
    assert {name for name, row in zip(model.modes, rows, strict=True) if row.sum() == 0} == silent


def test_accumulated_parts_add_up(model, make_batch):
    whole, parts = (compiled(model, n, distill_high=HIGH, distill_low=LOW)(make_batch(8), 2)[0] for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, parts)


def test_a_student_like_its_teacher(model, make_batch):
    """Neither loss nor gradient: the teacher is a constant, not the student seen twice."""
    batch = make_batch(8)
    (value, gradient, _), _ = compiled(model, distill_high=HIGH, distill_low=LOW)(batch, 1, teacher=STUDENT)
    (plain, plain_gradient, _), _ = compiled(model)(batch, 1)
    assert float(value) == pytest.approx(float(plain), rel=1e-6)
    assert float(gradient["image"]) == pytest.approx(float(plain_gradient["image"]), rel=1e-6)


def echo_of(model):
    return Echo(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


def test_a_step_has_a_teacher_that_stays(model, make_batch):
    """The update of the step is that of the loss against the teacher given, not against the student."""
    batch, optimizer = make_batch(8), optax.sgd(0.01)
    objective = ObjectiveConfig(distill_high=HIGH, distill_low=LOW)
    step = jax.jit(train_step.make_train_step(echo_of(model), objective, optimizer, SEED, 1, ema_decay=0.9))
    student = jax.tree.map(jnp.float32, STUDENT)
    new, metrics = step(TrainState(jnp.int32(2), student, {}, student, optimizer.init(student)), {}, batch, TEACHER)
    (value, gradient, statistics), _ = compiled(model, distill_high=HIGH, distill_low=LOW)(batch, 2)
    (plain, _, _), _ = compiled(model)(batch, 2)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6) and float(value) > 1.01 * float(plain)
    for name in STUDENT:
        assert float(new.params[name]) == pytest.approx(STUDENT[name] - 0.01 * float(gradient[name]), rel=1e-5)
    total = statistics["sum"][train_step.DISTILL].sum()
    assert float(metrics["sum"][train_step.DISTILL].sum()) == pytest.approx(float(total), rel=1e-5)


def test_what_is_not_trained_is_the_teachers_too(model, make_batch):
    """With the image's part frozen, student and teacher agree on the image, whatever else they are."""
    batch, objective = make_batch(8), ObjectiveConfig(distill_high=HIGH, distill_low=LOW)

    @jax.jit
    def run(trained, untrained, teacher):
        arguments = ({}, trained, untrained, batch, jnp.int32(1), teacher)
        return train_step.loss_and_gradient(echo_of(model), objective, SEED, 1, *arguments)[2]

    statistics = run({"depth": 0.6}, {"image": 0.3}, {"depth": -5.0})
    assert not statistics["sum"][train_step.DISTILL].any() and statistics["sum"]["image"].any()


def test_statistics_are_by_the_noise_level_of_the_image(model, make_batch):
    (_, _, statistics), ((x, t, _), _) = compiled(model, distill_high=HIGH, distill_low=LOW)(make_batch(8), 1)
    by_bin = np.zeros(train_step.NOISE_BINS)
    bins = np.minimum((t["image"] * train_step.NOISE_BINS).astype(int), train_step.NOISE_BINS - 1)
    np.add.at(by_bin, bins, by_hand(model, x, t))
    np.testing.assert_allclose(statistics["sum"][train_step.DISTILL].sum(axis=0), by_bin, rtol=1e-4)


def test_the_step_of_a_config(tiny_config, make_batch):
    """It distils where the config says so, and takes what it has no use for too."""
    tiny_config["objective"] = dict(distill_high=HIGH)
    config = resolve(tiny_config)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1))
    real = build_model(config)
    state = train_state.abstract(real, config, mesh)
    arguments = (state, {"unused": {"decoder": jnp.ones(3)}}, make_batch(8), state.params)
    with sharding.scope(mesh):
        lowered = train_step.jit_train_step(real, config, mesh).lower(*arguments)
    assert lowered.out_info[1]["sum"].keys() == {"image", "depth", train_step.DISTILL}
    signature = next(line for line in lowered.as_text().splitlines() if "func.func public @main" in line)
    assert len(re.findall(r"%arg\d+:", signature)) == len(jax.tree.leaves(arguments))
