"""A trained model ready to use: `load(DIR)` and `.sample(...)`.

Legend: B batch, H W pixels, N tokens, C channels per token.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mf_jax.data.resize import masked_nearest, resize_image
from mf_jax.diffusion.sampler import euler
from mf_jax.diffusion.schedule import schedules
from mf_jax.joint_model import JointModel, Params
from mf_jax.modalities.base import Batch
from mf_jax.models import frozen

# What a mode asks for: the modalities that it takes as conditions.
CONDITIONS = {"joint": (), "i2d": ("image",), "d2i": ("depth",), "partial": ("depth",)}


class Pipeline:
    """A model with its weights. Calls with the same settings and batch size share one compilation.

    Args:
      frozen_params: parameters of the model's frozen networks by name.
    """

    def __init__(self, config: Any, model: JointModel, params: Params, frozen_params: dict[str, Any], step: int):
        self.config = config
        self.model = model
        self.params = params
        self.frozen_params = frozen_params
        self.step = step
        self.tokenizer = model.text.tokenizer()
        self._compiled = functools.lru_cache(maxsize=16)(self._build)

    def sample(
        self,
        mode: str = "joint",
        prompt: str | list[str] = "",
        image: np.ndarray | None = None,
        depth: np.ndarray | None = None,
        steps: int | None = None,
        seed: int | np.ndarray = 0,
        batch: int | None = None,
        mu: float | None = None,
        log2_alpha: float | None = None,
        guidance: float | None = None,
        guide: str | None = None,
        refine: bool = False,
    ) -> dict[str, np.ndarray]:
        """Image and depth, one conditioned on the other or both from the prompt.

        Args:
          mode: "joint" (text to both), "i2d" (image to depth), "d2i" (depth to image), "partial" (depth to image, the
            depth shown at a noise level that falls ahead of the image's: section 5 of the paper).
          prompt: one for all, or one per example.
          image: uint8 (H, W, 3) or (B, H, W, 3), for i2d; stretched to the model's resolution.
          depth: float (H, W) or (B, H, W), any unit, for d2i and partial; 0, NaN, inf are missing and become noise.
          steps, mu, guidance, guide: as in SampleConfig, whose values are the defaults.
          log2_alpha: joint and partial, as in SampleConfig.
          seed: one number (example i of the batch then uses noise (seed, i)), or one per example.
          batch: examples to make; otherwise as many as there are prompts, images, depths or seeds.
          refine: joint: a second, unguided i2d pass on the generated image replaces its depth.

        Returns:
          {"image": uint8 (B, H, W, 3), "depth": float32 (B, H, W)} at the model's resolution, joint: every modality
          that the model has. Depth is relative (the model is trained on a mean of 1), larger is farther. A condition
          comes back as the model saw it (missing depth: 0).

        Raises:
          ValueError: an unknown mode, a missing or superfluous input, a wrong shape or type, a prompt that is too long.
        """
        defaults = self.config["sample"]
        steps = defaults["steps"] if steps is None else steps
        mu = defaults["mu"] if mu is None else mu
        guide = defaults["guide"] if guide is None else guide
        if mode not in CONDITIONS:
            raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(CONDITIONS)}")
        if guide not in ("all", "image"):
            raise ValueError(f"guide is {guide!r}; it must be 'all' or 'image'")
        if refine and mode != "joint":
            raise ValueError(f"refine is for mode 'joint'; the mode is {mode!r}")
        if log2_alpha is not None and mode not in ("joint", "partial"):
            raise ValueError(f"log2_alpha is for the modes 'joint' and 'partial'; the mode is {mode!r}")
        for name in ("image", "depth") if mode != "joint" or refine else ():
            if name not in self.model.modalities:
                raise ValueError(f"this model has no modality {name!r}; it has {', '.join(self.model.modalities)}")
        given = {"image": image, "depth": depth}
        for name, value in given.items():
            if (value is not None) != (name in CONDITIONS[mode]):
                wants = f"needs {name}" if value is None else f"takes no {name}"
                raise ValueError(f"mode {mode!r} {wants}")
        guidance = self.guidance_of(mode, guidance)
        if log2_alpha is None:
            log2_alpha = {"joint": defaults["log2_alpha"], "partial": defaults["partial_log2_alpha"]}.get(mode, 0.0)

        inputs = {}
        if image is not None:
            inputs |= self._image_input(np.asarray(image))
        if depth is not None:
            inputs |= self._depth_input(np.asarray(depth))
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = np.asarray(seed)
        sizes = {len(prompts), *(len(v) for v in inputs.values()), seeds.size, batch or 1} - {1}
        if len(sizes) > 1:
            raise ValueError(
                f"prompt, image, depth, seed and batch give different numbers of examples: {sorted(sizes)}"
            )
        count = sizes.pop() if sizes else 1
        if seeds.ndim == 0:
            keys = [jax.random.fold_in(jax.random.key(int(seed)), i) for i in range(count)]
        elif seeds.shape == (count,):
            keys = [jax.random.key(int(s)) for s in seeds]
        else:
            raise ValueError(f"seed has shape {seeds.shape}; it must be one number or one for each of {count} examples")
        fields = [self.tokenizer.fields(p) for p in prompts]
        text = {name: np.stack([one[name] for one in fields]) for name in fields[0]}
        text = {name: np.broadcast_to(v, (count, *v.shape[1:])) for name, v in text.items()}
        inputs = {name: np.broadcast_to(v, (count, *v.shape[1:])) for name, v in inputs.items()}

        text, conditions = self._prepared(text), self._prepared(inputs)
        codecs = {name: self.model.modalities[name].codec for name in CONDITIONS[mode]}
        conditions = {name: (codec.encode(conditions), codec.valid(conditions)) for name, codec in codecs.items()}
        null = self._null_text
        run = self._compiled(mode, steps, mu, log2_alpha, guidance, guide)
        tokens = run(self.params, conditions, text, null, jnp.stack(keys))
        if refine:
            image = tokens["image"]  # as it was sampled, without a detour over 8-bit pixels
            refiner = self._compiled("i2d", steps, mu, 0.0, 1.0, guide)
            given = {"image": (image, jnp.ones(image.shape, bool))}
            tokens["depth"] = refiner(self.params, given, text, null, jnp.stack(keys))["depth"]
        result = {name: np.asarray(v) for name, v in self._decode(self.frozen_params, tokens).items()}
        if "depth" in CONDITIONS[mode]:
            result["depth"] = np.where(inputs["depth_valid"], result["depth"], 0.0)
        return result

    def guidance_of(self, mode: str, guidance: float | None = None) -> float:
        """The guidance scale that a mode uses: the one given, else 1 for i2d and that of the config for the others."""
        if guidance is not None:
            return guidance
        return 1.0 if mode == "i2d" else self.config["sample"]["guidance"]

    def _build(self, mode: str, steps: int, mu: float, log2_alpha: float, guidance: float, guide: str) -> Any:
        """The jitted sampler of one setting: (params, conditions, text, null_text, key_B) -> clean tokens."""
        model = self.model
        pinned = {} if mode == "partial" else {name: 0.0 for name in CONDITIONS[mode]}
        warped = {"depth": log2_alpha} if mode == "partial" or (mode == "joint" and log2_alpha) else {}
        warped = {name: value for name, value in warped.items() if name in model.modalities}
        grid = schedules(tuple(model.modalities), steps, pinned, mu=mu, log2_alpha=warped)
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
                self.config["objective"]["t_floor"],
            )

        return run

    @functools.cached_property
    def _null_text(self) -> Batch:
        """What the model reads of the empty prompt, leading axis 1."""
        return self._prepared(self.model.null_text)

    @functools.cached_property
    def _prepare(self) -> Any:
        return jax.jit(self.model.prepare)

    def _prepared(self, batch: dict[str, np.ndarray]) -> Batch:
        """The fields with what the frozen networks make of them."""
        return self._prepare(self.frozen_params, batch)

    @functools.cached_property
    def _decode(self) -> Any:
        return jax.jit(self.model.decode)

    def _image_input(self, image: np.ndarray) -> dict[str, np.ndarray]:
        image = image[None] if image.ndim == 3 else image
        if image.ndim != 4 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image has shape {image.shape} and dtype {image.dtype}; it must be uint8 (H, W, 3) or (B, H, W, 3)"
            )
        return {"image": np.stack([resize_image(one, self.model.resolution) for one in image])}

    def _depth_input(self, depth: np.ndarray) -> dict[str, np.ndarray]:
        depth = depth[None] if depth.ndim == 2 else depth
        if depth.ndim != 3:
            raise ValueError(f"depth has shape {depth.shape}; it must be (H, W) or (B, H, W)")
        valid = np.isfinite(depth) & (depth > 0)
        if not valid.any(axis=(1, 2)).all():
            raise ValueError("depth has no valid pixel: all are 0, negative, NaN or inf")
        clean = np.where(valid, depth, 0.0).astype(np.float32)
        resized = [masked_nearest(d, v, self.model.resolution) for d, v in zip(clean, valid, strict=True)]
        return {"depth": np.stack([d for d, _ in resized]), "depth_valid": np.stack([v for _, v in resized])}


def load(
    directory: str | pathlib.Path,
    step: int | None = None,
    weights: str = "ema",
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> Pipeline:
    """The model of a directory.

    Args:
      directory: the `--workdir` of a run, or an exported one. step: which checkpoint, the latest unless said.
      weights: "ema" or "params". overrides: of the config, "sample.steps=20".
      trust_code: whether the config in the directory may name modules to import, as modalities of other packages do.

    Raises:
      ValueError: no checkpoint there, a damaged one, one that does not fit its own config, weights that are not finite.
    """
    from mf_jax.checkpoint.saved_model import SavedModel

    saved = SavedModel(directory, step, overrides, trust_code)
    params = saved.params(weights)
    saved.close()
    return Pipeline(saved.config, saved.model, params, frozen.load(saved.model.networks), saved.step)
