"""The config, model and parameters that tests share, and XLA's settings for them.

tests/eight_devices needs eight simulated devices, which make everything else slow: test_eight_devices.py runs that
folder in a process of its own, with the flag that this file looks for. tests/multihost starts runs that several tests
look at: under pytest-xdist, test_multihost.py runs that folder in a process of its own.

Legend: B batch, H W pixels, L text ids, N tokens, C channels per token.
"""

import os

# Nearly all the time of these tests goes into compiling, which takes half as long unoptimised.
_FLAG = "--xla_backend_optimization_level=0"
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_GIVEN} {_FLAG}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
collect_ignore = [] if "device_count=8" in _GIVEN else ["eight_devices"]
if "PYTEST_XDIST_WORKER" in os.environ:
    collect_ignore += ["multihost"]

import pathlib  # noqa: E402
import shutil  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tokenizers  # noqa: E402
from PIL import Image  # noqa: E402

# Minutes each: begun last they would leave the other core idle.
LONGEST = [pathlib.Path(__file__).with_name(f"test_{name}.py") for name in ("multihost", "eight_devices", "resume")]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path) if item.path in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """What one test has compiled, the others of this run need not."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(folder / "jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def goldens():
    """The folder of the numbers that the official inference code produced."""
    return pathlib.Path(__file__).parent / "goldens"


def _config():
    noise = {"image": "logit_normal", "depth": "plateau_logit_normal"}
    modalities = {
        name: dict(kind=name, position=i, patch=8, prediction="x", noise=dict(kind=noise[name]))
        for i, name in enumerate(noise)
    }
    modalities["depth"]["decoder_blocks"] = 1
    return dict(
        data=dict(
            source=dict(kind="procedural", train=32, validation=4, test=4),
            resolution=(16, 16),
            sparsify=dict(kind="random", fraction=0.2),
            workers=0,
        ),
        modalities=modalities,
        modes=dict(
            joint=dict(probability=0.6),
            i2d=dict(probability=0.2, clean=("image",)),
            d2i=dict(probability=0.2, clean=("depth",)),
        ),
        model=dict(width=32, layers=2, heads=2, kv_heads=1),
        text=dict(max_bytes=96, group=8, width=32),
        train=dict(steps=6, batch=8, log_every=1),
        optimizer=dict(learning_rate=1e-3, warmup=2),
        checkpoint=dict(every=3),
    )


@pytest.fixture(scope="session")
def make_tiny_config():
    """A function that makes what `tiny_config` is; for fixtures that outlive a test."""
    return _config


@pytest.fixture
def tiny_config():
    """What a config file's get_config() returns, at the smallest sizes: a fresh dict, to be edited at will."""
    return _config()


@pytest.fixture(scope="session")
def randomised():
    """A function (tree, seed) -> the same tree, every leaf drawn anew: norm scales around 1, the rest around 0.

    Nothing stays at its initial zero, where gates, biases and output heads would hide what lies behind them.
    """

    def draw(tree, seed=0):
        generator = np.random.default_rng(seed)

        def leaf(path, value):
            name = jax.tree_util.keystr(path)
            if "'scale'" in name:
                return (1 + 0.2 * generator.standard_normal(value.shape)).astype(np.float32)
            fan_in = value.shape[-2] if "'kernel'" in name else 1
            return (generator.standard_normal(value.shape) * 0.8 / np.sqrt(fan_in)).astype(np.float32)

        return jax.tree_util.tree_map_with_path(leaf, tree)

    return draw


@pytest.fixture(scope="session")
def make_batch():
    """A function (examples, seed, share) -> batch of the tiny config, as the loader yields it, without book-keeping.

    share: of the depth pixels that are measured, by example; a number does for all.
    """

    def make(examples=8, seed=0, share=0.5):
        generator = np.random.default_rng(seed)
        share_B = np.broadcast_to(np.asarray(share, float), examples)
        valid_BHW = generator.random((examples, 16, 16)) < share_B[:, None, None]
        depth_BHW = generator.uniform(0.5, 20.0, valid_BHW.shape)
        return {
            "image": generator.integers(0, 256, (examples, 16, 16, 3), dtype=np.uint8),
            "depth": np.where(valid_BHW, depth_BHW, 0.0).astype(np.float32),
            "depth_valid": valid_BHW,
            "text_ids": generator.integers(1, 257, (examples, 96), dtype=np.int32),
        }

    return make


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory, goldens):
    """Folder of a tiny UMT5 checkpoint: 32 features, a tokenizer of one id per letter and </s>."""
    folder = tmp_path_factory.mktemp("umt5")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(goldens / "umt5" / file, folder)
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    model = tokenizers.models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def make_frozen_config(make_tiny_config, text_encoder, goldens):
    """A function (root) -> the tiny config with frozen encoders of image and text, on a folder of frames."""

    def make(root):
        raw = make_tiny_config()
        source = dict(
            kind="folder", root=str(root), image="*.png", depth="*.npy", depth_scale=1.0, captions="*.txt",
            splits={"train": ":", "test": ":"},
        )  # fmt: skip
        raw["data"] = dict(source=source, resolution=(16, 16), workers=0)
        raw["modalities"]["image"] = dict(
            kind="flux2_latent", position=0, checkpoint=str(goldens / "flux2_vae"), channels=16, reduction=8,
            prediction="x", noise=dict(kind="logit_normal"),
        )  # fmt: skip
        raw["text"] = dict(kind="umt5", checkpoint=str(text_encoder), max_length=24, width=32)
        raw["objective"] = dict(caption_dropout=0.3)
        return raw

    return make


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """A folder of 16 frames of 16 x 16 pixels: NAME.png, NAME.npy (depth in metres), NAME.txt of 0 to 22 letters."""
    folder = tmp_path_factory.mktemp("frames")
    generator = np.random.default_rng(3)
    for i, length in enumerate([0, 22, 1, 9, 5, 12, 3, 7, 2, 17, 4, 6, 8, 1, 11, 3]):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        np.save(folder / f"{i}.npy", generator.uniform(0.5, 9.0, (16, 16)).astype(np.float32))
        (folder / f"{i}.txt").write_text("".join(generator.choice(list("abcdefgh"), length)))
    return folder
