"""FLUX.2 with depth against numbers of the official inference code: outputs, all in between, gradients, weights.

Tolerances: nearly all of the difference comes from the phases of the noise-level embedding, up to 1000 radians in
float32, and up to 4000 for a guidance scale.

Legend: B batch, M text tokens, N tokens of one modality, T all tokens, C channels, W width.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mf_jax.models import flux2_weights, weight_table
from mf_jax.models.flux2 import Flux2
from mf_jax.models.layers import Dense, positions, rotary_table, sinusoid, text_positions
from mf_jax.models.stream import Stream

TENSORS = {"dit_v1": 73, "dit_v2": 53, "dit_guidance": 45}  # in each folder's weight file
OURS = {"img": "image", "rgb": "image", "depth": "depth", "txt": "text"}
# Single-stream heads are named otherwise; the image's has no name of its own.
SINGLE = {"single_stream_modulation": "image", "single_stream_modulation_depth": "depth"}


def inputs_of(forward, scale=1.0):
    """(x, t, text, guidance) of a forward.npz; tokens and text times a number."""
    x = {"image": scale * forward["img"], "depth": scale * forward["depth"]}
    t = {"image": forward["t_rgb"], "depth": forward["t_depth"]}
    return x, t, scale * forward["ctx"], forward.get("guidance")


def compiled(model, grids):
    """(params, x, t, text, guidance) -> (loss, (outputs, intermediates)), gradients by the first four arguments.

    The loss is mean(image^2) + mean(depth^2). Outputs of the linear maps and embedders directly under the model are
    among the intermediates.
    """

    def watched(module, _):
        return len(module.path) == 1 and (isinstance(module, Dense) or module.name.startswith("time_"))

    def loss(params, x, t, text, guidance):
        outputs, state = model.apply(
            {"params": params},
            x,
            t,
            grids,
            text,
            guidance,
            mutable=["intermediates"],
            capture_intermediates=watched,
        )
        return sum(jnp.mean(jnp.square(y)) for y in outputs.values()), (outputs, state["intermediates"])

    jitted = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    return lambda *given: jax.tree.map(np.asarray, jitted(*given))


@pytest.fixture(scope="module", params=TENSORS)
def golden(request, official):
    return official(request.param)


@pytest.fixture(scope="module")
def run(golden):
    return compiled(golden.model, golden.grids)


@pytest.fixture(scope="module")
def result(golden, run):
    return run(golden.params, *inputs_of(golden.arrays("forward")))


def abstract_params(model, text_channels):
    """Shapes of a fresh model's parameters."""
    streams = {stream.name: stream.channels for stream in model.streams}

    def init():
        x = {name: jnp.zeros((1, 1, channels)) for name, channels in streams.items()}
        t, grids = dict.fromkeys(streams, jnp.zeros(1)), dict.fromkeys(streams, (1, 1))
        return nn.unbox(model.init(jax.random.key(0), x, t, grids, jnp.zeros((1, 1, text_channels)))["params"])

    return jax.eval_shape(init)


def test_outputs(golden, result):
    forward, ((value, (outputs, _)), _) = golden.arrays("forward"), result
    np.testing.assert_allclose(outputs["image"], forward["rgb_out"], atol=2e-4)
    np.testing.assert_allclose(outputs["depth"], forward["depth_out"], atol=2e-4)
    assert float(value) == pytest.approx(float(golden.arrays("forward_grads")["loss"]), rel=1e-5)


def test_outputs_for_small_inputs(golden, run):
    """Here the constants under the square roots matter: with 1e-5 in the LayerNorm the outputs would move by 2 to 4."""
    forward = golden.arrays("forward")
    (_, (outputs, _)), _ = run(golden.params, *inputs_of(forward, forward["small_scale"]))
    np.testing.assert_allclose(outputs["image"], forward["small_rgb_out"], atol=1e-3)
    np.testing.assert_allclose(outputs["depth"], forward["small_depth_out"], atol=1e-3)


def test_without_guidance(official):
    """The embedding of the scale is left out, not that of some default put in."""
    golden = official("dit_guidance")
    forward = golden.arrays("forward")
    x, t, text, _ = inputs_of(forward)
    outputs = jax.jit(lambda: golden.model.apply({"params": golden.params}, x, t, golden.grids, text))()
    np.testing.assert_allclose(outputs["image"], forward["rgb_out_no_guidance"], atol=2e-4)
    np.testing.assert_allclose(outputs["depth"], forward["depth_out_no_guidance"], atol=2e-4)
    assert np.abs(forward["rgb_out"] - forward["rgb_out_no_guidance"]).max() > 0.1


def found(name, kept, forward, golden):
    """Our array for an entry of forward_intermediates.npz."""
    rows, columns = golden.grids["image"]
    kind, _, rest = name.partition("_")
    if kind == "temb":
        return sinusoid(forward[f"t_{rest}"])
    if kind == "pe":
        stream, part = rest.split("_")
        where = {"img": positions(rows, columns, 0), "depth": positions(rows, columns, 1)}
        where["txt"] = text_positions(forward["ctx"].shape[1])
        return rotary_table(where[stream], golden.model.axes, golden.model.theta)[("cos", "sin").index(part)]
    if name.endswith("_in_out"):
        return kept[f"{OURS[kind]}_in"]["__call__"][0]
    if kind == "vec":
        stream = OURS[rest.split("_")[0]]
        return kept[f"vector_{stream}"][0] if rest.endswith("_final") else kept[f"time_{stream}"]["__call__"][0]
    if kind == "mod":
        head = rest.removeprefix("_")
        if head in SINGLE:
            ours = f"{SINGLE[head]}_single_modulation"
        elif head.startswith("double"):
            ours = f"{OURS[head.rsplit('_', 1)[1]]}_double_modulation"
        else:
            ours = head
        return kept[ours]["__call__"][0]
    if kind.startswith("double"):
        return kept["double"][f"out_{OURS[rest]}"][0][int(kind[-1])]
    if kind.startswith("single"):
        return kept["single"]["out"][0][int(kind[-1])]
    if kind.startswith("decoder"):
        return kept["depth_decoder"]["out"][0][int(kind[-1])]
    assert rest == "tokens_before_head"
    if kind == "depth":
        return kept["depth_decoder"]["out"][0][-1]
    start = forward["ctx"].shape[1]
    return kept["single"]["out"][0][-1][:, start : start + rows * columns]


def test_everything_in_between(golden, result):
    """Sinusoids, vectors, modulations, input projections, rotary tables, every block of every stack."""
    forward, ((_, (_, kept)), _) = golden.arrays("forward"), result
    theirs = golden.arrays("forward_intermediates")
    assert len(theirs) >= 28
    for name, expected in theirs.items():
        ours = np.asarray(found(name, kept, forward, golden))
        assert ours.shape == expected.shape, name
        # Up to 14 in the small model with the guidance scale, whose phases are the largest; 5 to 8 in the others.
        largest = max(1.0, np.abs(expected).max())
        exact = name.startswith("pe_") or name.endswith("_in_out")
        tolerance = 2e-6 if exact else 5e-5 * largest if golden.model.guidance_embedding else 2e-5 * largest
        if name.startswith("temb_"):
            tolerance = 2e-4
        np.testing.assert_allclose(ours, expected, atol=tolerance, rtol=0, err_msg=name)


def test_gradients_of_the_inputs(golden, result):
    theirs, (_, (_, x, t, text)) = golden.arrays("forward_grads"), result
    ours = {"img": x["image"], "depth": x["depth"], "ctx": text, "t_rgb": t["image"], "t_depth": t["depth"]}
    for name, gradient in ours.items():
        expected = theirs[f"d_{name}"]
        atol = 2e-4 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=atol, rtol=0, err_msg=name)


def test_gradients_of_all_parameters(golden, result):
    """Norm and sum of each, under the official names and in the official layout."""
    theirs, (_, (gradient, *_)) = golden.arrays("forward_grads"), result
    ours = weight_table.to_theirs(gradient, flux2_weights.table(golden.model))
    assert sorted(ours) == sorted(theirs["param_names"])
    for name, norm, total in zip(*(theirs[f"param_{kind}"] for kind in ("names", "grad_l2", "grad_sum")), strict=True):
        entries = ours[name].astype(np.float64)
        assert np.linalg.norm(entries) == pytest.approx(float(norm), rel=2e-4), name
        assert entries.sum() == pytest.approx(float(total), abs=5e-4 * float(norm)), name


@pytest.mark.parametrize("preset", ["full", "attention_mlp"])
def test_recomputing_blocks_changes_nothing(preset, official):
    golden = official("dit_guidance")
    given = golden.params, *inputs_of(golden.arrays("forward"))
    model = golden.model.clone(remat=preset)
    plain, saving = (compiled(m, golden.grids)(*given) for m in (golden.model, model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max()), plain, saving)
    x, t, text, _ = given[1:]
    program = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, x, t, golden.grids, text))(golden.params))
    assert program.count("remat") >= 3


def test_image_alone_is_the_model_without_depth(official):
    """Same outputs from the image's and the text's share of the parameters; and nothing else is read."""
    golden = official("dit_v2")
    alone = golden.model.clone(streams=golden.model.streams[:1])
    share = weight_table.to_ours(golden.tensors, flux2_weights.table(alone))
    x, t, text, _ = inputs_of(golden.arrays("forward"))
    x, t = {"image": x["image"]}, {"image": t["image"]}
    called = [
        np.asarray(jax.jit(lambda p, m=m: m.apply({"params": p}, x, t, golden.grids, text)["image"])(p))
        for m, p in ((golden.model, golden.params), (alone, share))
    ]
    np.testing.assert_array_equal(*called)
    names = set(weight_table.flatten(abstract_params(alone, text.shape[-1])))
    assert names == set(weight_table.flatten(share)) and len(names) < len(weight_table.flatten(golden.params))


def test_a_published_image_model_is_part_of_one_with_depth(official):
    """Black Forest Labs' names have no prefix; what they hold is the image's and the text's share."""
    golden = official("dit_guidance")
    image_alone = flux2_weights.table(golden.model.clone(streams=golden.model.streams[:1]), prefix="")
    file = {name: golden.tensors[f"dit.{name}"] for name in weight_table.plan(image_alone)}
    part = flux2_weights.published_part(golden.model, file)
    assert part == image_alone
    assert {entry.ours for entry in part} < set(weight_table.flatten(golden.params))
    assert flux2_weights.published_part(golden.model, golden.tensors) == flux2_weights.table(golden.model)


def test_a_release_without_mixing_loads_into_a_model_with_it(official):
    """Then the gates keep their fresh zeros."""
    golden = official("dit_v1")
    mixing = golden.model.clone(cross_mixing=True)
    part = flux2_weights.published_part(mixing, golden.tensors)
    assert part == flux2_weights.table(golden.model)
    missing = {entry.ours for entry in flux2_weights.table(mixing)} - {entry.ours for entry in part}
    assert {path.split("/")[0] for path in missing} == {
        "gate_depth_to_image",
        "gate_image_to_depth",
        "time_depth_to_image",
        "time_image_to_depth",
    }


def test_weights_of_a_file_and_back(golden):
    """The file's tensors exactly, each read once, and exactly what a fresh model has."""
    table = flux2_weights.table(golden.model)
    assert len(golden.tensors) == TENSORS[golden.folder.name] == len(weight_table.plan(table))
    back = weight_table.to_theirs(golden.params, table)
    assert sorted(back) == sorted(golden.tensors)
    for name, tensor in golden.tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    text_channels = golden.arrays("forward")["ctx"].shape[-1]
    fresh = weight_table.flatten(abstract_params(golden.model, text_channels))
    assert {name: leaf.shape for name, leaf in fresh.items()} == {
        name: leaf.shape for name, leaf in weight_table.flatten(golden.params).items()
    }


@pytest.mark.parametrize(
    ("variant", "streams", "billions"),
    [("flux_rgbd_9b_v1", 2, 11.951), ("flux_rgbd_9b_v2", 2, 11.986), ("flux_rgbd_9b_v2", 1, 9.08)],
)
def test_size_of_the_released_variants(variant, streams, billions):
    """The release is called 12B, the FLUX.2 that it starts from 9B."""
    both = (Stream("image", 128, position=0, decoder_blocks=0), Stream("depth", 256, position=1, decoder_blocks=4))
    model = Flux2(streams=both[:streams], **flux2_weights.RELEASED, **flux2_weights.VARIANTS[variant])
    assert flux2_weights.variant_of(model) == (variant if streams == 2 else None)
    assert flux2_weights.variant_of(model.clone(single_blocks=23)) is None
    params = abstract_params(model, text_channels=12288)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count / 1e9 == pytest.approx(billions, abs=1e-3 if streams == 2 else 5e-3)


def test_bfloat16(official):
    """As far from float32 as the official code is in bfloat16, where that does not round the noise level."""
    golden = official("dit_v1")
    forward, theirs = golden.arrays("forward"), golden.arrays("forward_bf16")
    model = golden.model.clone(dtype=jnp.bfloat16)
    x, t, text, _ = inputs_of(forward)
    outputs = jax.jit(lambda: model.apply({"params": golden.params}, x, t, golden.grids, text))()
    for name, there in (("image", "rgb_out"), ("depth", "depth_out")):
        assert outputs[name].dtype == jnp.float32
        off_B = np.sqrt(np.mean((outputs[name] - forward[there]) ** 2, axis=(1, 2)))
        official_off_B = np.sqrt(np.mean((theirs[there] - forward[there]) ** 2, axis=(1, 2)))
        assert np.all(off_B > 2e-3) and np.all(off_B < 0.02)
        assert np.all(official_off_B[:2] < 0.02) and official_off_B[2] > 0.09


def test_what_it_cannot_be_called_with(official):
    golden = official("dit_v1")
    x, t, text, _ = inputs_of(golden.arrays("forward"))

    def call(names, guidance=None):
        given = ({name: values.get(name, x["image"]) for name in names} for values in (x, t))
        golden.model.apply({"params": golden.params}, *given, golden.grids, text, guidance)

    with pytest.raises(ValueError, match=r"needs 'image'; it was called with \['depth'\]"):
        call(["depth"])
    with pytest.raises(ValueError, match="normals"):
        call(["image", "normals"])
    with pytest.raises(ValueError, match="without guidance embedding"):
        call(["image", "depth"], t["image"])


def test_streams_and_files_that_are_not_published(official):
    model = official("dit_v1").model
    normals = dataclasses.replace(model.streams[1], name="normals")
    with pytest.raises(ValueError, match="no stream 'normals'"):
        flux2_weights.table(model.clone(streams=(model.streams[0], normals)))
    with pytest.raises(ValueError, match=r"neither dit.img_in.weight .* nor img_in.weight"):
        flux2_weights.published_part(model, {"transformer.img_in.weight"})
