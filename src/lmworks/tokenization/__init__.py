"""Tokenizers trained, loaded and applied; chat templates; streaming text. Knows no model."""

from lmworks.tokenization.chat_template import RenderedChat
from lmworks.tokenization.detokenizer import StreamingDetokenizer
from lmworks.tokenization.padding import PaddedBatch, encode_padded
from lmworks.tokenization.tokenizer import EncodedChat, Tokenizer, check_compatible, load_tokenizer

__all__ = [
    "EncodedChat",
    "PaddedBatch",
    "RenderedChat",
    "StreamingDetokenizer",
    "Tokenizer",
    "check_compatible",
    "encode_padded",
    "load_tokenizer",
]
