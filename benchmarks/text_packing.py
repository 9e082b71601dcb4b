"""What packed captions cost: rows of the text encoder for drawn captions, and FLOPs of a step with its frozen networks.

    python benchmarks/text_packing.py

Lengths are drawn from a gamma distribution of mean 60 (rounded, 1 to 256) with two deviations, for batches of the
shipped 370M configs on several numbers of devices, and packed as the loop packs them; the fullest device decides the
rows of all. Printed are rows per caption (mean of 20 batches), how many different numbers of rows came up (programs to
compile), and the step's hardware FLOPs over those without frozen networks: unpacked, packed, and as `show` expects
from text.expected_tokens. Nothing is computed on a device.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mf_jax.config.loading import load
from mf_jax.data.packing import TextLayout
from mf_jax.joint_model import build_model
from mf_jax.monitoring import flops

BATCHES = 20
MEAN, DEVIATIONS = 60, (20, 40)
DEVICES = (8, 16, 32, 64)


def drawn(generator: np.random.Generator, deviation: float, count: int, longest: int) -> np.ndarray:
    shape = (MEAN / deviation) ** 2
    return np.clip(generator.gamma(shape, MEAN / shape, count).round(), 1, longest).astype(int)


def main() -> None:
    print("config     devices  per device  deviation  rows/caption  programs  unpacked  packed  expected")
    for name in ("mofo_370m", "t2i_370m"):
        config = load(f"configs/{name}.py")
        model = build_model(config)
        length, batch = model.text.length, config.train.batch
        alone = flops.hardware_flops(dataclasses.replace(model, networks={}), config)

        def ratio(rows: float, model=model, config=config, alone=alone) -> float:
            return flops.hardware_flops(model, config, rows) / alone

        for devices in DEVICES:
            layout = TextLayout(model.text_lengths, model.packs_text, batch // devices)
            expected = layout.encoded(layout.expected(MEAN, length))
            for deviation in DEVIATIONS:
                generator = np.random.default_rng(0)
                shapes = []
                for _ in range(BATCHES):
                    mask = np.arange(length) < drawn(generator, deviation, batch, length)[:, None]
                    shapes.append(layout.arrange({"text_mask": mask, "text_ids": mask.astype(np.int32)})[0])
                rows = float(np.mean([layout.encoded(shape) for shape in shapes]))
                print(
                    f"{name:10} {devices:7}  {batch // devices:10}  {deviation:9}  {rows:12.3f}  {len(set(shapes)):8}  "
                    f"{ratio(1.0):8.2f}  {ratio(rows):6.2f}  {ratio(expected):8.2f}"
                )


if __name__ == "__main__":
    main()
