"""Ahead-of-time compilation of a config's training step, for devices that need not be there, without weights or data.

What is compiled is the step that `train` runs, on the shapes, dtypes and shardings of its state, its frozen networks
and its batch. Nothing is allocated.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mf_jax.aot.memory import Memory, out_of_memory
from mf_jax.config.config import Config
from mf_jax.data.packing import TextLayout
from mf_jax.data.transforms import example_shapes
from mf_jax.joint_model import JointModel, build_model
from mf_jax.models.frozen import EMPTY_PROMPT
from mf_jax.models.text.empty_prompt import EmptyPrompt
from mf_jax.parallel import sharding
from mf_jax.training import train_state
from mf_jax.training.compilation import compile_with_options
from mf_jax.training.compiler_options import compiler_options
from mf_jax.training.train_step import jit_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """A training step that is ready to compile: a config, its model, a mesh, and the shapes of the arguments.

    Attributes:
      arguments: (state, frozen_params, batch, teacher) of the step: jax.ShapeDtypeStruct with shardings.
      assumed: what was not at hand, and what was taken in its place.
      text_rows: of the frozen text encoder, per example.
    """

    config: Config
    model: JointModel
    mesh: Mesh
    arguments: tuple[train_state.TrainState, dict[str, Any], dict[str, Any], Any]
    assumed: tuple[str, ...]
    text_rows: float = 1.0

    @property
    def device_kind(self) -> str:
        return self.mesh.devices.flat[0].device_kind

    @property
    def compiler_options(self) -> dict[str, Any]:
        """With which a run compiles the step."""
        return compiler_options(self.device_kind, self.config.train.compiler_options)

    @property
    def slices(self) -> list[int]:
        """The slice of TPUs, or the node of GPUs, of every device, in the order of the mesh."""
        devices = self.mesh.devices.flat
        return [getattr(d, "slice_index", 0) if d.platform == "tpu" else d.process_index for d in devices]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes: text: of the optimised HLO. lowering, compiling: seconds. options: of the compiler.
    """

    memory: Memory
    text: str
    lowering: float
    compiling: float
    options: dict[str, Any]


def make_job(config: Config, devices: Sequence[jax.Device]) -> Job:
    """The job of a resolved config on these devices.

    Published networks whose files are not at hand are taken at the sizes that they are known to have, and the empty
    prompt, which needs the tokenizer or a file, as one token.

    Raises:
      ValueError: what does not fit together.
    """
    platform = devices[0].platform
    assumed = []
    if platform == "gpu" and jax.default_backend() != "gpu" and config.model.attention in ("auto", "cudnn"):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))
        assumed.append("attention by XLA: cuDNN's kernel, which a run has, cannot be compiled without a GPU")
    layout = config.mesh
    mesh = sharding.make_mesh(layout, devices)
    with sharding.rules(layout.rules):
        model = build_model(config, platform).with_precomputed(config.data.precomputed)
        sharding.check_batch(config.train.batch, config.train.accumulate, mesh)
        sharding.check_divisible(model.sizes, mesh)
        model = _without_files(model, assumed)
        state = train_state.abstract(model, config, mesh)
        frozen_params = {name: network.abstract(mesh) for name, network in model.networks.items()}
        if model.empty_prompt is not None and config.objective.caption_dropout:
            shape = (_empty_tokens(model.empty_prompt, assumed), model.text.channels)
            place = sharding.replicated(mesh)
            frozen_params[EMPTY_PROMPT] = jax.ShapeDtypeStruct(shape, model.backbone.dtype, sharding=place)
        teacher = state.params if config.objective.distills else None
        if teacher is not None:
            assumed.append("the teacher has all the parameters that are trained, as an import has")
        place = sharding.batch_sharding(mesh)
        shapes = example_shapes(model.resolution, model.precomputed)
        if "text_features" not in model.precomputed:
            shapes |= model.text_shapes
        batch = {
            name: jax.ShapeDtypeStruct((config.train.batch, *shape), dtype, sharding=place)
            for name, (shape, dtype) in shapes.items()
        }
        packed, text_rows = _packed_text(config, model, mesh, assumed)
        batch |= {name: jax.ShapeDtypeStruct(*of_one, sharding=place) for name, of_one in packed.items()}
    return Job(config, model, mesh, (state, frozen_params, batch, teacher), tuple(assumed), text_rows)


def _packed_text(
    config: Config, model: JointModel, mesh: Mesh, assumed: list[str]
) -> tuple[dict[str, tuple[tuple[int, ...], Any]], float]:
    """Shapes and dtypes of the fields of packed text, and rows of the text encoder per example; lines in `assumed`."""
    size, parts = model.text.length, config.train.accumulate
    layout = TextLayout(
        model.text_lengths, model.packs_text, config.train.batch // (parts * sharding.batch_parts(mesh)), parts
    )
    tokens = getattr(config.text, "expected_tokens", 0)
    shape = layout.expected(tokens, size)
    if layout.packed:
        how = f"of {tokens} tokens on average" if tokens else "of unknown length: none shares a row"
        assumed.append(
            f"{shape.rows} rows of {size} tokens for every {layout.group} captions, {how} (text.expected_tokens)"
        )
    if len(layout.lengths) > 1:
        assumed.append(f"text of {shape.length} tokens in the transformer, the longest of text.lengths")
    return layout.packed_shapes(config.train.batch, shape.rows, size), layout.encoded(shape)


def _without_files(model: JointModel, assumed: list[str]) -> JointModel:
    """The model in which networks without files have the published sizes; adds a line to `assumed` for each."""
    networks = dict(model.networks)
    for name, network in model.networks.items():
        if (published := network.as_published()) is not None:
            networks[name] = published
            assumed.append(f"sizes of the published {label(name)}, whose files are not at hand")
    return dataclasses.replace(model, networks=networks)


def _empty_tokens(prompt: EmptyPrompt, assumed: list[str]) -> int:
    """Tokens of the empty prompt; adds a line to `assumed` where the files that say it are not at hand."""
    try:
        return prompt.tokens
    except ValueError:
        tokens = 1 if prompt.masked else prompt.text.tokens
        assumed.append(f"an empty prompt of {tokens} token{'s' if tokens > 1 else ''}, as its files are not at hand")
        return tokens


def label(name: str) -> str:
    """The printed name of a frozen network, or of the empty prompt."""
    return {"text": "text encoder", EMPTY_PROMPT: EMPTY_PROMPT}.get(name, f"autoencoder of {name}")


def compile_step(job: Job) -> Program:
    """Lowers and compiles the step, with the options that a run compiles it with.

    Raises:
      OutOfMemory: the compiler says that it cannot fit. ValueError: it does not know an option.
    """
    options = job.compiler_options
    start = time.perf_counter()
    with sharding.rules(job.config.mesh.rules):
        step = jit_train_step(job.model, job.config, job.mesh)
        with sharding.scope(job.mesh):
            lowered = step.lower(*job.arguments)
        lowering = time.perf_counter() - start
        try:
            compiled = compile_with_options(lowered, options)
        except jax.errors.JaxRuntimeError as error:
            raise (out_of_memory(str(error)) or error) from None
    compiling = time.perf_counter() - start - lowering
    memory = _memory(job, compiled.memory_analysis())
    return Program(memory, compiled.as_text() or "", lowering, compiling, options)


def argument_bytes(job: Job) -> dict[str, int]:
    """Bytes per device of the step's arguments by group (parameters, EMA, optimizer, ...), without padding."""
    state, frozen_params, batch, teacher = job.arguments
    groups = {"parameters": state.params, "untrained parameters": state.untrained, "EMA": state.ema}
    groups |= {"optimizer": (state.opt_state, state.step)}
    groups |= {label(name): tree for name, tree in frozen_params.items()} | {"teacher": teacher, "batch": batch}
    return {name: sum(map(_shard_bytes, jax.tree.leaves(tree))) for name, tree in groups.items()}


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def _memory(job: Job, found: Any) -> Memory:
    arguments = argument_bytes(job)
    return Memory(
        arguments=arguments,
        padding=found.argument_size_in_bytes - sum(arguments.values()),
        temporaries=found.temp_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        peak=found.peak_memory_in_bytes,
        host=found.host_argument_size_in_bytes + found.host_temp_size_in_bytes + found.host_output_size_in_bytes,
    )
