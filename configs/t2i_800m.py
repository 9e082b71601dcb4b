r"""Text-to-image pre-training of the 800M model of the scaling study (section 4 of the paper), 256x256.

    python -m mf_jax train --config=configs/t2i_800m.py --workdir=runs/t2i_800m \
        --config.data.source.root=IMAGES --config.modalities.image.checkpoint=AUTOENCODER --config.text.checkpoint=UMT5

IMAGES holds NAME.jpg with NAME.txt, the caption. AUTOENCODER holds ae_encoder.safetensors and ae_decoder.safetensors of
FLUX.2, UMT5 the encoder of UMT5-XXL (config.json, tokenizer.json, safetensors).

From the paper: width, layers, x-prediction, noise levels; 128M, 640M or 1.92B images (by the project page 50k, 250k and
750k steps, hence a batch of 2560). Chosen here, as the paper does not say: heads, optimizer, EMA, caption dropout. Not
trained yet: there is no result.

On v5p:2x2x4 with batch 512, --config.model.remat=dots --config.mesh.data=4 --config.mesh.fsdp=4 fits and is faster, as
predicted in benchmarks/results/2026-11-25_step_speed.txt; there also what
--config.train.compiler_options.xla_tpu_scoped_vmem_limit_kib=65536 brings. For other slices see compile --search.
"""


def get_config():
    return dict(
        data=dict(
            source=dict(
                kind="folder",
                root="data/images",
                image="*.jpg",
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
        ),
        modes=dict(t2i=dict(probability=1.0)),
        text=dict(kind="umt5", checkpoint="weights/umt5_xxl", max_length=256, expected_tokens=60),
        model=dict(kind="flat_dit", width=1536, layers=30, remat="full"),
        objective=dict(caption_dropout=0.1),
        train=dict(steps=50_000, batch=2560, ema_decay=0.9999),
        optimizer=dict(learning_rate=1e-4, warmup=2000),
        mesh=dict(data=1, fsdp=-1),
        checkpoint=dict(every=2500, keep_every=50_000),
    )
