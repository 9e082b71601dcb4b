"""The quickstart: Modality Forcing on procedural rooms and fields, 32x32 pixels, depth with 20 % of the pixels valid.

    make quickstart

or, step by step,

    python -m mf_jax train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m mf_jax.showcase runs/quickstart
    python -m mf_jax evaluate --checkpoint=runs/quickstart

Hardware and time: TODO
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
                patch=4,
                scale=0.4,
                prediction="x",
                weight=3.0,
                noise=dict(kind="logit_normal", mu=0.0, sigma=1.8),
            ),
            depth=dict(
                kind="depth",
                position=1,
                patch=4,
                prediction="x",
                noise=dict(kind="plateau_logit_normal", mu=0.7),
                decoder_blocks=1,
            ),
        ),
        modes=dict(
            joint=dict(probability=0.6),
            i2d=dict(probability=0.2, clean=("image",)),
            d2i=dict(probability=0.2, clean=("depth",)),
        ),
        text=dict(max_bytes=96, group=16),
        model=dict(width=128, layers=5, heads=4, kv_heads=2),
        train=dict(steps=3600, batch=16, ema_decay=0.99, log_every=100),
        optimizer=dict(kind="muon", learning_rate=1.5e-3, muon_learning_rate=6e-3, schedule="cosine", warmup=100),
        checkpoint=dict(every=500),
        sample=dict(steps=40, guidance=1.5, guide="image"),
        evaluate=dict(steps=1, ensemble=4, images=256, depth_range=(1e-3, 1000.0)),
    )
