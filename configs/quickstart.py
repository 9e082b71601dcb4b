"""The quickstart: Modality Forcing on procedural rooms and fields, 32x32 pixels, depth with 20 % of the pixels valid.

    make quickstart

or, step by step,

    python -m mf_jax train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m mf_jax showcase --checkpoint=runs/quickstart
    python -m mf_jax evaluate --checkpoint=runs/quickstart

Hardware and time: 2 CPU cores (AMD EPYC, AVX-512), 8.5 minutes of training at 113 images/s, 9.5 minutes in all, with
huge pages (the Makefile's FAST_MALLOC); without them the step takes 1.3 to 1.5 times as long.
Result, 256 unseen scenes against dense depth, MoGe alignment: AbsRel 0.142, best constant per image 0.320 (0.44 of
it), delta1 0.805 against 0.434. One Euler step is the model's conditional mean; 4 steps give 0.146, 10 give 0.159.
Joint samples are blurry scenes: fields with sky, ground and objects in the caption's colours, rooms with coloured walls
but hardly an edge between them. AbsRel of their depth to the depth estimated from their image is 0.090, of
shuffled pairs 0.194. Depth->image hardly follows the depth yet.

Where it departs from the paper: Muon (with `--config.optimizer.kind=adamw` and all else the same, AbsRel 0.186), and
image noise levels as wide as pixels of this scale need, from the caption's colour to a patch's edge.
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
