"""Sampling from a trained model: `load(DIR).sample(...)`.

Legend: B batch, H W pixels.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config.config import Config
from mf_jax.configurable import nearest
from mf_jax.diffusion.schedule import schedules
from mf_jax.inference.compiled import CompiledSampler
from mf_jax.inference.modes import SamplingMode, conditioned_on, sampling_modes
from mf_jax.modalities.base import Batch
from mf_jax.models import frozen
from mf_jax.parallel import inference_mesh, sharding
from mf_jax.parallel.processes import ProcessGroup


class Pipeline:
    """A model with its weights, on all devices. Calls with the same settings and batch size share one compilation.

    Where there are several processes (distributed.joined), all have to make the same calls.

    Args:
      compiled: the model and its weights.

    Attributes:
      params, frozen_params: the weights of the model, and of its frozen networks by name. Those that the model reads in
        bfloat16 are held in it, see `JointModel.as_read`.
      modes: the ways to sample, by name.
    """

    def __init__(self, config: Config, compiled: CompiledSampler, step: int):
        self.config = config
        self.compiled = compiled
        self.model = compiled.model
        self.params, self.frozen_params = compiled.params, compiled.frozen_params
        self.step = step
        self.modes = sampling_modes(self.model)
        self.tokenizer = self.model.text.tokenizer()

    def sample(
        self,
        mode: str = "joint",
        prompt: str | list[str] = "",
        *,
        steps: int | None = None,
        seed: int | np.ndarray = 0,
        batch: int | None = None,
        mu: float | None = None,
        log2_alpha: float | None = None,
        guidance: float | None = None,
        guide: str | None = None,
        refine: bool = False,
        **conditions: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """Samples every modality of the model, given the prompt and the conditions of the mode.

        Args:
          mode: "joint" (no condition), one of the config's modes (its clean modalities are the conditions: "i2d" image
            to depth, "d2i" depth to image), or "partial" (any but the leading modality, with noise at a level that
            falls ahead of the leading one's: section 5 of the paper).
          prompt: one for all, or one per example.
          steps, mu, guidance, guide: as in SampleConfig, whose values are the defaults.
          log2_alpha: for modes without clean conditions, as in SampleConfig.
          seed: one number (example i of the batch then uses noise (seed, i)), or one per example.
          batch: number of examples; None: as many as there are prompts, conditions or seeds.
          refine: for modes without conditions: a second, unguided pass, conditioned on the leading modality of the
            first, replaces all others.
          conditions: by modality, for one example or for each, stretched to the model's resolution; see `condition` of
            its codec. image: uint8 (H, W, 3) or (B, H, W, 3). depth: float (H, W) or (B, H, W), any unit; 0, NaN, inf
            are missing and become noise. Each of several processes reads only the rows that it holds
            (`CompiledSampler.rows`).

        Returns:
          By modality, at the model's resolution: image uint8 (B, H, W, 3), depth float32 (B, H, W). Depth is relative
          (the model is trained on a mean of 1), larger is farther. A condition comes back as the model saw it (missing
          depth: 0).

        Raises:
          ValueError: an unknown mode, a missing or superfluous condition, a wrong shape or type, a prompt that is too
            long.
        """
        defaults = self.config.sample
        steps = defaults.steps if steps is None else steps
        mu = defaults.mu if mu is None else mu
        guide = defaults.guide if guide is None else guide
        given = {name: np.asarray(value) for name, value in conditions.items() if value is not None}
        for name in given:
            if name not in self.model.modalities:
                known = {*self.model.modalities, *(self.sample.__kwdefaults__ or ())}
                raise ValueError(f"{name!r} is no modality of this model and no setting; {nearest(name, known)}")
        chosen = self._mode(mode)
        if guide not in ("all", *self.model.modalities):
            raise ValueError(f"guide is {guide!r}; it must be 'all' or one of {', '.join(self.model.modalities)}")
        if refine and chosen.conditions:
            raise ValueError(f"refine is for mode 'joint'; the mode is {mode!r}")
        if log2_alpha is not None and chosen.clean:
            raise ValueError(f"log2_alpha is for the modes 'joint' and 'partial'; the mode is {mode!r}")
        chosen.check(given)
        guidance = self.guidance_of(mode, guidance)
        if log2_alpha is None:
            by_default = defaults.partial_log2_alpha if chosen.renoised else defaults.log2_alpha
            log2_alpha = 0.0 if chosen.clean else by_default
        leading = self.model.leading
        refined = conditioned_on(self.modes, (leading,)).clean if refine else None

        codecs = {name: modality.codec for name, modality in self.model.modalities.items()}
        fields = {name: codecs[name].condition(value, self.model.resolution) for name, value in given.items()}
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = np.asarray(seed)
        sizes = {len(value) for of_one in fields.values() for value in of_one.values()}
        sizes = (sizes | {len(prompts), seeds.size, batch or 1}) - {1}
        if len(sizes) > 1:
            what = ", ".join(["prompt", *given, "seed"])
            raise ValueError(f"{what} and batch give different numbers of examples: {sorted(sizes)}")
        count = sizes.pop() if sizes else 1
        keys = _noise_keys(seeds, count)
        text = self._null_text if prompts == [""] else self._text(prompts)
        given_tokens = self.compiled.conditions(fields, count)

        def run(clean: Sequence[str], conditions: Any, log2_alpha: float, scales: dict[str, float]) -> Any:
            warped = {name: log2_alpha for name in codecs if name != leading}
            grid = schedules(tuple(codecs), steps, dict.fromkeys(clean, 0.0), mu=mu, log2_alpha=warped)
            return self.compiled.sample(keys, grid, conditions, text, self._null_text if scales else None, scales)

        guided = guidance != 1.0 and any(guide in ("all", name) for name in codecs if name not in fields)
        scales = {name: guidance if guide in ("all", name) else 1.0 for name in codecs} if guided else {}
        tokens = run(chosen.clean, given_tokens, log2_alpha, scales)
        if refined:  # from its tokens, which are not rounded to 8-bit pixels
            tokens = run(refined, {leading: (tokens[leading], np.ones((1, 1, 1), bool))}, 0.0, {})
        return self.compiled.decode(tokens, count)

    def mode_of(self, clean: Collection[str]) -> str:
        """The name of the mode that is conditioned on exactly these modalities.

        Raises:
          ValueError: there is none.
        """
        return conditioned_on(self.modes, clean).name

    def guidance_of(self, mode: str, guidance: float | None = None) -> float:
        """The guidance scale: the one given, else 1 if the leading modality is a condition, else the config's."""
        if guidance is not None:
            return guidance
        return 1.0 if self.model.leading in self._mode(mode).conditions else self.config.sample.guidance

    def _mode(self, name: str) -> SamplingMode:
        if name not in self.modes:
            raise ValueError(f"mode is {name!r}; it must be one of {', '.join(self.modes)}")
        return self.modes[name]

    @functools.cached_property
    def _null_text(self) -> Batch:
        """What the model reads of the empty prompt, leading axis 1."""
        return self.compiled.text(self.model.null_text, 1)

    def _text(self, prompts: Sequence[str]) -> Batch:
        ids = [self.tokenizer.fields(prompt) for prompt in prompts]
        return self.compiled.text({name: np.stack([one[name] for one in ids]) for name in ids[0]}, len(prompts))


def _noise_keys(seeds: np.ndarray, count: int) -> np.ndarray:
    """Key data (count, ...) of the examples' noise: of (seed, i), or of a seed for each."""
    if seeds.ndim == 0:
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        return np.asarray(jax.random.key_data(fold(jax.random.key(int(seeds)), np.arange(count))))
    if seeds.shape != (count,):
        raise ValueError(f"seed has shape {seeds.shape}; it must be one number or one for each of {count} examples")
    return np.stack([np.asarray(jax.random.key_data(jax.random.key(int(seed)))) for seed in seeds])


def load(
    directory: str | pathlib.Path,
    step: int | None = None,
    weights: str = "ema",
    overrides: Sequence[str] = (),
    trust_code: bool = False,
    group: ProcessGroup | None = None,
) -> Pipeline:
    """Loads a saved model for sampling, onto all devices.

    Args:
      directory: the `--workdir` of a run, or an exported one. step: of a checkpoint; None: the latest.
      weights: "ema" or "params". overrides: of the config, "sample.steps=20".
      trust_code: whether the config in the directory may name modules to import, as modalities of other packages do.
      group: the processes (distributed.joined), all of which call this; None for one process.

    Raises:
      ValueError: no checkpoint there, a damaged one, one that does not fit its own config, weights that are not finite.
    """
    group = group or ProcessGroup()
    saved = SavedModel(directory, step, overrides, trust_code)
    if (of_main := group.broadcast(saved.step)) != saved.step:  # a run is just saving another one
        raise ValueError(
            f"process 0 finds step {of_main} in {directory}, this one {saved.step}; choose one with --step"
        )
    networks, rules = saved.model.networks, saved.config.mesh.rules

    def bytes_on(mesh: jax.sharding.Mesh) -> int:
        beside = {name: network.abstract(mesh) for name, network in networks.items()}
        return inference_mesh.bytes_per_device((saved.abstract(mesh, as_read=True), beside))

    with sharding.rules(rules):
        mesh = inference_mesh.mesh_of(group.broadcast(inference_mesh.fsdp_size(bytes_on)))
        params, frozen_params = saved.params(weights, mesh, as_read=True), frozen.load(networks, mesh)
    saved.close()
    floor = saved.config.objective.t_floor
    model = saved.model.for_sampling(mesh.devices.flat[0].platform)
    compiled = CompiledSampler(model, params, frozen_params, mesh, rules, floor, group)
    return Pipeline(saved.config, compiled, saved.step)
