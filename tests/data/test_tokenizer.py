"""Tokenizers. The tokenizer.json files here are tiny and have the structure of the published ones.

Legend: L length of every text in ids.
"""

import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from mf_jax.data.tokenizer import ByteTokenizer, Qwen3Tokenizer, UMT5Tokenizer

CHAT = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
TEXTS = ["", "red", "a red box", "深度 red", "e\u0301 ", "\n\n"]


def test_bytes_plus_one_then_padding():
    ids = ByteTokenizer(6)("aé\0")
    assert ids.dtype == np.int32
    assert ids.tolist() == [ord("a") + 1, 0xC3 + 1, 0xA9 + 1, 1, 0, 0]


@pytest.mark.parametrize("text", ["", "a red box", "深度图像", "\0\x7f", "🙂" * 4])
def test_round_trip(text):
    tokenize = ByteTokenizer(16)
    assert tokenize.decode(tokenize(text)) == text


def test_a_prompt_that_is_too_long_is_an_error():
    assert ByteTokenizer(8)("12345678").all()
    with pytest.raises(ValueError, match="9 UTF-8 bytes exceeds the limit of 8: shorten it"):
        ByteTokenizer(8)("1234567é")


def test_a_caption_is_cut_between_characters():
    tokenize = ByteTokenizer(5)
    assert tokenize.fit("abcdé") == "abcd"
    assert tokenize.fit("abcé") == "abcé"
    assert tokenize.fit("深度") == "深"


def test_length_must_be_positive():
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        ByteTokenizer(0)


def test_the_fields_of_bytes_are_their_ids():
    tokenize = ByteTokenizer(5)
    fields = tokenize.fields("box")
    assert list(fields) == ["text_ids"]
    np.testing.assert_array_equal(fields["text_ids"], tokenize("box"))
    assert tokenize.limit == "5 bytes"


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory):
    """Folder and tokenizer of a byte-level BPE with the chat tokens."""
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "re", "red"]
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, [("r", "e"), ("re", "d")])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(CHAT[:3])
    tokenizer.add_tokens(CHAT[3:])
    return _save(tokenizer, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def sentence_file(tmp_path_factory):
    """Folder and tokenizer of a unigram model over words and letters that appends </s> by itself."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581red", "\u2581box", *"abcdefghijklmnopqrstuvwxyz"]
    model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2, byte_fallback=False)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return _save(tokenizer, tmp_path_factory.mktemp("umt5"))


def _save(tokenizer, folder):
    """The file asks for truncation and padding of its own, as some published ones do."""
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return folder, tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_qwen3_gets_the_prompt_in_a_chat_without_thinking(chat_file, text):
    folder, tokenizer = chat_file
    fields = Qwen3Tokenizer(folder, 64).fields(text)
    real = fields["text_ids"][fields["text_mask"]].tolist()
    composed = text.replace("e\u0301", "é")
    assert tokenizer.decode(real, skip_special_tokens=False) == (
        f"<|im_start|>user\n{composed}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    ids = {token: tokenizer.token_to_id(token) for token in CHAT}
    assert [real.count(ids[token]) for token in CHAT] == [0, 2, 1, 1, 1]


def test_qwen3_pads_on_the_right_and_the_mask_says_where(chat_file):
    """The padding token may be part of a prompt: there it is real."""
    folder, tokenizer = chat_file
    pad = tokenizer.token_to_id("<|endoftext|>")
    plain, with_pad = (Qwen3Tokenizer(folder, 40).fields(text) for text in ("red", "red<|endoftext|>"))
    assert plain["text_ids"].dtype == np.int32 and plain["text_ids"].shape == (40,)
    assert plain["text_mask"].dtype == bool
    count = plain["text_mask"].sum()
    np.testing.assert_array_equal(plain["text_mask"], np.arange(40) < count)
    assert count == 26  # 5 special tokens of the chat, 20 letters and line breaks, and "red"
    assert (plain["text_ids"][count:] == pad).all() and (plain["text_ids"][:count] != pad).all()
    assert with_pad["text_mask"].sum() == count + 1
    assert (with_pad["text_ids"][with_pad["text_mask"]] == pad).sum() == 1


@pytest.mark.parametrize("text", ["", "red", "red box", "box red red", "a  b"])
def test_umt5_gets_the_prompt_and_one_end_token(sentence_file, text):
    folder, tokenizer = sentence_file
    fields = UMT5Tokenizer(folder, 16).fields(text)
    real = fields["text_ids"][fields["text_mask"]].tolist()
    assert real == tokenizer.encode(text).ids
    assert real[-1] == 1 and real.count(1) == 1
    np.testing.assert_array_equal(fields["text_ids"][len(real) :], 0)
    np.testing.assert_array_equal(fields["text_mask"], np.arange(16) < len(real))


@pytest.fixture(params=["qwen3", "umt5"])
def published(request, chat_file, sentence_file):
    """(class, its folder, ids around the text)."""
    return (Qwen3Tokenizer, chat_file[0], 25) if request.param == "qwen3" else (UMT5Tokenizer, sentence_file[0], 1)


def test_a_prompt_may_fill_the_length_and_not_exceed_it(published):
    kind, folder, around = published
    text = "red red box"
    length = kind(folder, 99).fields(text)["text_mask"].sum()
    assert kind(folder, length).fields(text)["text_mask"].all()
    with pytest.raises(
        ValueError, match=rf"text of {length} tokens, counting {around} .* limit of {length - 1}: shorten"
    ):
        kind(folder, length - 1).fields(text)


@pytest.mark.parametrize("text", ["red red box red and more", "redredred redredredred", "a深b度c图d像", "aé" * 9])
def test_a_caption_is_cut_before_the_character_that_exceeds(published, text):
    kind, folder, around = published
    for free in range(6):
        tokenize = kind(folder, around + free)
        cut = tokenize.fit(text)
        assert text.startswith(cut) and len(cut) < len(text)
        tokenize.fields(cut)
        with pytest.raises(ValueError, match="exceeds the limit"):
            tokenize.fields(text[: len(cut) + 1])
    assert kind(folder, 99).fit(text) == text


def test_what_follows_the_caption_is_never_cut(chat_file):
    folder, _ = chat_file
    tokenize = Qwen3Tokenizer(folder, 32)
    whole, cut = tokenize.fields(""), tokenize.fields(tokenize.fit("red box " * 20))
    assert cut["text_mask"].sum() == 32
    tail = whole["text_ids"][whole["text_mask"]][-19:]  # from <|im_end|> on
    np.testing.assert_array_equal(cut["text_ids"][-19:], tail)


def test_a_worker_process_gets_the_same_tokenizer(published):
    kind, folder, _ = published
    tokenize = kind(folder, 48)
    copy = pickle.loads(pickle.dumps(tokenize))
    for text in TEXTS:
        for name, value in tokenize.fields(text).items():
            np.testing.assert_array_equal(copy.fields(text)[name], value)


def test_ids_are_below_the_size_of_the_vocabulary(chat_file, sentence_file):
    assert Qwen3Tokenizer(chat_file[0]).vocab_size == 256 + 2 + len(CHAT)
    assert UMT5Tokenizer(sentence_file[0]).vocab_size == 6 + 26
    assert Qwen3Tokenizer(chat_file[0]).limit == "512 tokens"


def test_the_wrong_files_are_named(published, chat_file, sentence_file, tmp_path):
    kind, folder, around = published
    with pytest.raises(ValueError, match=r"no file .*tokenizer\.json; give the folder"):
        kind(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        kind(tmp_path)
    other = chat_file[0] if kind is UMT5Tokenizer else sentence_file[0]
    with pytest.raises(ValueError, match=rf"has no token '<.*{kind.__name__} needs it"):
        kind(other)
    with pytest.raises(ValueError, match=f"length is {around - 1}; the empty text alone takes {around} tokens"):
        kind(folder, around - 1)
