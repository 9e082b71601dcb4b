"""Sampling from a trained model: `load(DIR).sample(...)`.

Legend: B batch, H W pixels, N tokens, C channels per token.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.checkpoint.saved_model import SavedModel
from mf_jax.config.config import Config
from mf_jax.configurable import nearest
from mf_jax.diffusion.sampler import euler
from mf_jax.diffusion.schedule import schedules
from mf_jax.inference.modes import SamplingMode, conditioned_on, sampling_modes
from mf_jax.joint_model import JointModel, Params
from mf_jax.modalities.base import Batch
from mf_jax.models import frozen


class Pipeline:
    """A model with its weights. Calls with the same settings and batch size share one compilation.

    Args:
      frozen_params: parameters of the model's frozen networks by name.

    Attributes:
      modes: the ways to sample, by name.
    """

    def __init__(self, config: Config, model: JointModel, params: Params, frozen_params: dict[str, Any], step: int):
        self.config = config
        self.model = model
        self.params = params
        self.frozen_params = frozen_params
        self.step = step
        self.modes = sampling_modes(model)
        self.tokenizer = model.text.tokenizer()
        self._compiled = functools.lru_cache(maxsize=16)(self._build)

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
            are missing and become noise.

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
        key_B = _noise_keys(seeds, count)
        ids = [self.tokenizer.fields(p) for p in prompts]
        text = self._prepared({name: np.stack([one[name] for one in ids]) for name in ids[0]}, count)
        clean = {name: self._encoded(name, self._prepared(of_one, count)) for name, of_one in fields.items()}
        run = self._compiled(chosen.clean, steps, mu, log2_alpha, guidance, guide)
        tokens = run(self.params, clean, text, self._null_text, key_B)
        if refined:
            made = tokens[leading]  # its tokens, not rounded to 8-bit pixels
            run = self._compiled(refined, steps, mu, 0.0, 1.0, guide)
            tokens = run(self.params, {leading: (made, jnp.ones(made.shape, bool))}, text, self._null_text, key_B)
        return {name: np.asarray(v) for name, v in self._decode(self.frozen_params, tokens).items()}

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

    def _build(
        self, clean: tuple[str, ...], steps: int, mu: float, log2_alpha: float, guidance: float, guide: str
    ) -> Any:
        """The jitted sampler of one setting: (params, conditions, text, null_text, key_B) -> clean tokens.

        Args:
          clean: the conditions at t = 0; all others are renoised.
        """
        model = self.model
        warped = {name: log2_alpha for name in model.modalities if name != model.leading}
        grid = schedules(tuple(model.modalities), steps, dict.fromkeys(clean, 0.0), mu=mu, log2_alpha=warped)
        scales = {name: guidance if guide == "all" or name == guide else 1.0 for name in model.modalities}

        @jax.jit
        def run(params: Params, conditions: dict[str, Any], text: Batch, null_text: Batch, key_B: jax.Array) -> Any:
            noise = {}
            for i, (name, (rows, columns)) in enumerate(model.grids.items()):
                shape = (rows * columns, model.modalities[name].codec.channels)
                noise[name] = jax.vmap(lambda k, i=i, s=shape: jax.random.normal(jax.random.fold_in(k, i), s))(key_B)
            return euler(
                functools.partial(model.predict, params),
                noise,
                grid,
                {name: m.prediction for name, m in model.modalities.items()},
                conditions,
                text,
                jax.tree.map(lambda null, given: jnp.broadcast_to(null, given.shape), null_text, text),
                scales,
                self.config.objective.t_floor,
            )

        return run

    @functools.cached_property
    def _null_text(self) -> Batch:
        """The text fields of the empty prompt as the model reads them, leading axis 1."""
        return self._prepared(self.model.null_text)

    @functools.cached_property
    def _prepare(self) -> Any:
        return jax.jit(self.model.with_frozen_features)

    def _prepared(self, batch: dict[str, np.ndarray], count: int = 1) -> Batch:
        """The fields of `count` examples, or of one repeated, and those that the frozen networks add."""
        fields = {name: np.broadcast_to(value, (count, *value.shape[1:])) for name, value in batch.items()}
        return self._prepare(self.frozen_params, fields)

    def _encoded(self, name: str, fields: Batch) -> tuple[jax.Array, jax.Array]:
        """Clean tokens of a condition, 0 where missing, and which entries were measured; both (B, N, C)."""
        codec = self.model.modalities[name].codec
        valid_BNC = codec.valid(fields)
        return jnp.where(valid_BNC, codec.encode(fields), 0.0), valid_BNC

    @functools.cached_property
    def _decode(self) -> Any:
        return jax.jit(self.model.decode)


def _noise_keys(seeds: np.ndarray, count: int) -> jax.Array:
    if seeds.ndim == 0:
        return jnp.stack([jax.random.fold_in(jax.random.key(int(seeds)), i) for i in range(count)])
    if seeds.shape != (count,):
        raise ValueError(f"seed has shape {seeds.shape}; it must be one number or one for each of {count} examples")
    return jnp.stack([jax.random.key(int(seed)) for seed in seeds])


def load(
    directory: str | pathlib.Path,
    step: int | None = None,
    weights: str = "ema",
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> Pipeline:
    """Loads a saved model for sampling.

    Args:
      directory: the `--workdir` of a run, or an exported one. step: of a checkpoint; None: the latest.
      weights: "ema" or "params". overrides: of the config, "sample.steps=20".
      trust_code: whether the config in the directory may name modules to import, as modalities of other packages do.

    Raises:
      ValueError: no checkpoint there, a damaged one, one that does not fit its own config, weights that are not finite.
    """
    saved = SavedModel(directory, step, overrides, trust_code)
    params = saved.params(weights)
    saved.close()
    return Pipeline(saved.config, saved.model, params, frozen.load(saved.model.networks), saved.step)
