r"""Modality Forcing post-training of FLUX.2 [klein] 9B Base, 512x512: the released 12B model.

    python -m mf_jax import --source=FLUX2.safetensors --config=configs/flux2_klein_9b.py --workdir=runs/flux2_base
    python -m mf_jax train --config=configs/flux2_klein_9b.py --workdir=runs/flux2_klein_9b \
        --config.data.source.root=FRAMES --config.init.checkpoint=runs/flux2_base \
        --config.modalities.image.checkpoint=AUTOENCODER --config.text.checkpoint=QWEN3
    python -m mf_jax export --checkpoint=runs/flux2_klein_9b --output=OUT --layout=official --dtype=bf16

AUTOENCODER holds ae_encoder.safetensors and ae_decoder.safetensors, QWEN3 is the directory of Qwen3-8B (config.json,
tokenizer.json, safetensors), FRAMES as in configs/mofo_370m.py.

From the paper and the release: streams, blocks, noise levels, velocity for the image and x-prediction for depth, the
depth stream cloned from the image stream, image and text weights of the double-stream blocks frozen, self-distillation
from the text-to-image model. Not in the paper, chosen here: the weights of self-distillation, whether the text weights
are frozen, optimizer, batch, steps. Not trained yet: there is no result.
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
            resolution=(512, 512),
            augment=dict(flip=True),
            workers=16,
        ),
        modalities=dict(
            image=dict(
                kind="flux2_latent",
                position=0,
                checkpoint="weights/flux2_autoencoder",
                prediction="v",
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
        text=dict(kind="qwen3", checkpoint="weights/qwen3_8b"),
        model=dict(kind="flux2", remat="full"),
        objective=dict(caption_dropout=0.1, distill_high=1.0, distill_low=0.1),
        init=dict(
            checkpoint="runs/flux2_base",
            clone={
                "backbone/double/depth": "backbone/double/image",
                "backbone/depth_double_modulation": "backbone/image_double_modulation",
                "backbone/depth_single_modulation": "backbone/image_single_modulation",
            },
        ),
        train=dict(steps=50_000, batch=256, ema_decay=0.9999, freeze=("backbone/double/image", "backbone/double/text")),
        optimizer=dict(learning_rate=2e-5, warmup=2000),
        mesh=dict(data=1, fsdp=-1),
        checkpoint=dict(every=1000),
        evaluate=dict(ensemble=10),
    )
