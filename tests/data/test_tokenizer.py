import numpy as np
import pytest

from mf_jax.data.tokenizer import ByteTokenizer


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
