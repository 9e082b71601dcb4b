r"""Modality Forcing post-training of the 370M model of the scaling study (section 4 of the paper), 256x256.

    python -m mf_jax train --config=configs/mofo_370m.py --workdir=runs/mofo_370m \
        --config.data.source.root=FRAMES --config.init.checkpoint=runs/t2i_370m \
        --config.modalities.image.checkpoint=AUTOENCODER --config.text.checkpoint=UMT5

FRAMES holds NAME.jpg, NAME.depth.png (16 bit, millimetres, 0 missing) and NAME.txt, the caption. The other two as in
configs/t2i_370m.py, whose run it starts from; --config.init.checkpoint='' is the study's "none", from scratch.

From the paper: the three cases and their shares, noise levels, x-prediction, the depth codec. Chosen here: four decoder
blocks as in the released model, optimizer, batch, steps, EMA, equal loss weights. Not trained yet: there is no result.

On v5e:4x4 with batch 256, --config.model.remat=dots fits and is faster, as predicted in
benchmarks/results/2026-11-25_step_speed.txt; for other slices see compile --search.
"""


def get_config():
    return dict(
        data=dict(
            source=dict(
                kind="folder",
                root="data/frames",
                image="*.jpg",
                depth="*.depth.png",
                depth_scale=0.001,
                captions="*.txt",
                splits=dict(train="1000:", validation=":1000", test=":1000"),
            ),
            resolution=(256, 256),
            augment=dict(flip=True),
            workers=16,
        ),
        modalities=dict(
            image=dict(
                kind="flux2_latent",
                position=0,
                checkpoint="weights/flux2_autoencoder",
                prediction="x",
                noise=dict(kind="logit_normal", mu=1.1),
            ),
            depth=dict(
                kind="depth",
                position=1,
                patch=16,
                prediction="x",
                noise=dict(kind="plateau_logit_normal", mu=1.1),
                decoder_blocks=4,
            ),
        ),
        modes=dict(
            joint=dict(probability=0.6),
            i2d=dict(probability=0.2, clean=("image",)),
            d2i=dict(probability=0.2, clean=("depth",)),
        ),
        text=dict(kind="umt5", checkpoint="weights/umt5_xxl", max_length=256, expected_tokens=60),
        model=dict(kind="flat_dit", width=1024, layers=30, remat="full"),
        objective=dict(caption_dropout=0.1),
        init=dict(
            checkpoint="runs/t2i_370m",
            clone={"backbone/depth_modulation": "backbone/image_modulation"},
        ),
        train=dict(steps=50_000, batch=2048, ema_decay=0.9999),
        optimizer=dict(learning_rate=1e-4, warmup=2000),
        mesh=dict(data=1, fsdp=-1),
        checkpoint=dict(every=2500),
        evaluate=dict(ensemble=10),
    )
