"""Reading a `config.json` key by key, so that nothing in it is ignored in silence. Knows no family."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import ConfigError

HFConfig = Mapping[str, Any]

INERT = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "auto_map", "cache_implementation",
    "chunk_size_feed_forward", "do_sample", "dtype", "embd_pdrop", "embedding_dropout", "finetuning_task",
    "hidden_dropout", "id2label", "is_decoder", "is_encoder_decoder", "is_llama_config", "label2id", "max_length",
    "max_new_tokens", "max_window_layers", "model_type", "n_ctx", "output_attentions", "output_hidden_states",
    "pad_token_id", "pretraining_tp", "problem_type", "quantization_config", "reorder_and_upcast_attn", "resid_pdrop",
    "residual_dropout", "return_dict", "rope_interleaved", "rope_scaling", "rope_theta", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params",
    "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "transformers_weights", "unk_token_id", "use_cache",
})  # fmt: skip
"""Keys of `config.json` that do not change what the model computes at inference, or are read elsewhere."""

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_pytorch_tanh",
               "gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu",
               "relu": "relu", "relu2": "relu2"}  # fmt: skip
"""Hugging Face's names of activations to ours."""

REQUIRED: Any = object()


class Fields:
    """Reads a `config.json` key by key and remembers which, so that none is ignored in silence."""

    def __init__(self, values: HFConfig) -> None:
        self.values = values
        self._seen = set(INERT)
        self.taken: list[str] = []
        """Keys in the order of their taking, which tells what an error came from."""

    def take(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of `key`; `default` when it is absent or null.

        Raises:
            ConfigError: it is absent and there is no default.
        """
        self._seen.add(key)
        self.taken.append(key)
        value = self.values.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise ConfigError(f"config.json lacks {key!r}, which a model of this family needs", "Add it")
        return default

    def null(self, key: str) -> bool:
        """Whether `key` is there and null."""
        self._seen.add(key)
        return key in self.values and self.values[key] is None

    def count(self, key: str, default: Any = REQUIRED) -> Any:
        """`take` for a value that is computed with before the model's configuration validates it.

        Raises:
            ConfigError: it is no positive integer.
        """
        value = self.take(key, default)
        if value is not default and (not isinstance(value, int) or value <= 0):
            raise ConfigError(f"config.json: {key} = {value!r} is not a positive integer", "Correct it")
        return value

    def activation(self, key: str, default: str) -> str:
        """Our name of the activation function.

        Raises:
            ConfigError: it is unknown.
        """
        name = self.take(key, default)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise ConfigError(f"config.json: {key} = {name!r} is unknown", f"Known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def only(self, key: str, *allowed: Any, why: str) -> None:
        """Refuse any value of `key` but the allowed ones; absent and null are allowed."""
        value = self.take(key, None)
        if value is not None and value not in allowed:
            raise ConfigError(f"config.json: {key} = {value!r} is not supported: {why}", "Use a model without it")

    def done(self) -> None:
        """Warn about keys nobody read; those that begin with "_" are a library's notes to itself."""
        if unread := sorted(key for key in set(self.values) - self._seen if not key.startswith("_")):
            warnings.warn(f"config.json: {', '.join(unread)} have no effect here", UserWarning, stacklevel=3)


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """`eos_token_id` as it may be written: a number, a list or null."""
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    """The inverse of `token_ids`."""
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)
