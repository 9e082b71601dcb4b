"""The quickstart's task, trained for longer: a deeper model, some hours in the background.

    python -m mf_jax train --config=configs/procedural_small.py --workdir=runs/procedural_small
    python -m mf_jax evaluate --checkpoint=runs/procedural_small

Hardware: 2 CPU cores, an estimated 4 hours. Not trained to its end yet: there is no result to compare with.
"""


def get_config():
    return dict(
        data=dict(
            source=dict(kind="procedural", train=200_000, validation=256, test=256),
            resolution=(32, 32),
            sparsify=dict(kind="random", fraction=0.2),
            augment=dict(flip=True),
            workers=1,
        ),
        modalities=dict(
            image=dict(
                kind="image",
                position=0,
                patch=8,
                scale=0.4,
                prediction="x",
                weight=3.0,
                noise=dict(kind="logit_normal", mu=1.1),
            ),
            depth=dict(
                kind="depth",
                position=1,
                patch=8,
                prediction="x",
                noise=dict(kind="plateau_logit_normal", mu=1.1),
                decoder_blocks=2,
            ),
        ),
        modes=dict(
            joint=dict(probability=0.2),
            i2d=dict(probability=0.6, clean=("image",)),
            d2i=dict(probability=0.2, clean=("depth",)),
        ),
        text=dict(max_bytes=96, group=16),
        model=dict(width=192, layers=6, heads=3, kv_heads=1),
        train=dict(steps=8_000, batch=32, ema_decay=0.999),
        optimizer=dict(learning_rate=1.5e-3, schedule="cosine", warmup=200),
        checkpoint=dict(every=500),
        sample=dict(steps=50, guidance=2.0, log2_alpha=2.0),
        evaluate=dict(steps=1, ensemble=4, images=256, depth_range=(1e-3, 1000.0)),
    )
