"""Texts to vectors with a model of ours: sentence-transformers folders and plain ones, packed, without padding.

Satisfies `core.generation.Embedder`. Knows no tokenizer: a function from texts to token ids is passed in, and what
surrounds a text is read from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.head_slots import EmbeddingHead
from lmworks.models.hub.pretrained import load_pretrained
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.pooling import pool

Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""Token ids of each text, without special tokens."""
POOLING = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
"""Names of sentence-transformers, with and without the `pooling_mode_` of old files, to ours."""


@dataclass(frozen=True)
class EmbedderSettings:
    """What a folder says about vectors besides the model."""

    pooling: str = "mean"
    normalize: bool = False
    max_seq_length: int | None = None
    """Tokens of a text with what surrounds it; the rest is cut off. None: as many as the model has positions for."""
    prefix_ids: tuple[int, ...] = ()
    """Before each text: `[CLS]`."""
    suffix_ids: tuple[int, ...] = ()
    """After each text: `[SEP]`."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Instructions before a text by name, such as "query"."""
    default_prompt_name: str | None = None


class Embedder:
    """A model that turns texts into vectors.

    Args:
        model: decoder or encoder.
        encode: token ids of texts, without special tokens.
        settings: pooling and the like.
        max_num_batched_tokens: tokens of one forward pass, unless a single text has more.

    Raises:
        ConfigError: the model has both encoder and decoder.
    """

    def __init__(
        self, model: Transformer, encode: Encode, settings: EmbedderSettings | None = None, *,
        max_num_batched_tokens: int = 8192,
    ) -> None:  # fmt: skip
        if model.config.vision is not None:
            raise ConfigError("a model of images has no texts to embed", "Call `encode_images` and `embed_documents`")
        if len(model.config.stacks) > 1:
            raise ConfigError("an encoder-decoder gives no vectors of documents", "Load a model with one stack")
        self.model, self.encode = model.eval(), encode
        self.settings = settings or EmbedderSettings()
        self.max_num_batched_tokens = max_num_batched_tokens
        longest = model.config.max_position_embeddings
        self.max_seq_length = min(self.settings.max_seq_length or longest, longest)

    @classmethod
    def load(
        cls, folder: Path | str, encode: Encode, *, dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu", max_num_batched_tokens: int = 8192,
    ) -> Embedder:  # fmt: skip
        """Load a sentence-transformers folder (one with `modules.json`), or a plain model folder.

        Args:
            folder: of the model.
            encode: token ids of texts, without special tokens, by the tokenizer of the folder.
            dtype: of the weights; None keeps what `config.json` names.
            device: where they go.
            max_num_batched_tokens: tokens of one forward pass.

        Raises:
            ConfigError: the folder asks for what is not supported.
            CheckpointError: files are missing or damaged.
        """
        folder = Path(folder)
        modules = _modules(folder)
        model = load_pretrained(folder / modules.get("Transformer", ""), dtype=dtype, device=device)
        settings = _settings(folder, modules, model)
        return cls(model, encode, settings, max_num_batched_tokens=max_num_batched_tokens)

    def embed(self, texts: Sequence[str], prompt_name: str | None = None) -> list[list[float]]:
        """One unit-length vector per text, in order.

        Args:
            texts: any number.
            prompt_name: which of the model's prompts goes before each; None takes the default one, if there is one.

        Raises:
            ConfigError: the model has no such prompt.
        """
        name = prompt_name or self.settings.default_prompt_name
        if name is not None and name not in self.settings.prompts:
            known = ", ".join(self.settings.prompts) or "none"
            raise ConfigError(f"the model has no prompt {name!r}", f"Its prompts: {known}")
        prompt = "" if name is None else self.settings.prompts[name]
        vectors = self.embed_token_ids([self.surround(ids) for ids in self.encode([prompt + t for t in texts])])
        return torch.nn.functional.normalize(vectors.float(), dim=-1).tolist()

    def surround(self, token_ids: Sequence[int]) -> list[int]:
        """A text's token ids between the model's special tokens, cut to the longest it takes."""
        before, after = self.settings.prefix_ids, self.settings.suffix_ids
        return [*before, *token_ids[: max(0, self.max_seq_length - len(before) - len(after))], *after]

    @torch.inference_mode()
    def embed_token_ids(self, documents: Sequence[Sequence[int]]) -> Tensor:
        """Vectors [D, E] of token-id documents, special tokens included, as the folder's own pipeline gives them.

        Documents of like length share a forward pass, packed: no vector depends on its neighbors.

        Raises:
            ConfigError: a document is empty.
        """
        if empty := [i for i, ids in enumerate(documents) if not ids]:
            raise ConfigError(f"document {empty[0]} has no tokens, so it has no vector", "Leave empty texts out")
        device, dtype = self.model.device, self.model.dtype
        vectors = torch.empty(len(documents), self.model.config.hidden_size, device=device, dtype=dtype)
        for batch in self._batches(documents):
            lengths = [len(documents[i]) for i in batch]
            ids = torch.tensor([token for i in batch for token in documents[i]], device=device)
            positions = torch.cat([torch.arange(n, device=device) for n in lengths])
            bounds = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
            hidden = self.model(ids, positions, PackedContext(bounds))
            vectors[batch] = pool(hidden, bounds, self.settings.pooling)
        return torch.nn.functional.normalize(vectors, dim=-1) if self.settings.normalize else vectors

    def _batches(self, documents: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of documents, longest first, within the budget of tokens."""
        batch: list[int] = []
        tokens = 0
        for index in sorted(range(len(documents)), key=lambda i: -len(documents[i])):
            if batch and tokens + len(documents[index]) > self.max_num_batched_tokens:
                yield batch
                batch, tokens = [], 0
            batch.append(index)
            tokens += len(documents[index])
        if batch:
            yield batch


def _modules(folder: Path) -> dict[str, str]:
    """Kind of each module of a sentence-transformers folder and its folder below; empty for a plain one."""
    listed = _json(folder / "modules.json") or []
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"{folder}: modules.json is no list of modules", "Restore the file")
    modules = {}
    for module in listed:
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ConfigError(f"{folder}: the module {kind!r} of modules.json is not supported", "Use another model")
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}: modules.json names {path!r}, outside the folder", "Correct the path")
        modules[kind] = path
    return modules


def _settings(folder: Path, modules: Mapping[str, str], model: Transformer) -> EmbedderSettings:
    transformer = folder / modules.get("Transformer", "")
    prefix, suffix = _surroundings(_json(transformer / "tokenizer.json") or {})
    limit = (_json(transformer / "tokenizer_config.json") or {}).get("model_max_length")
    head = model.config.head
    if not modules:
        own = head if isinstance(head, EmbeddingHead) else EmbeddingHead()
        return EmbedderSettings(own.pooling, own.normalize, limit, prefix, suffix)
    written = _json(transformer / "sentence_bert_config.json") or {}
    if written.get("do_lower_case"):
        raise ConfigError(f"{folder}: do_lower_case is not supported", "Let the tokenizer's normalizer do it")
    said = _json(folder / "config_sentence_transformers.json") or {}
    return EmbedderSettings(
        pooling=_pooling(folder, _json(folder / modules["Pooling"] / "config.json") or {})
        if "Pooling" in modules
        else "mean",
        normalize="Normalize" in modules,
        max_seq_length=written.get("max_seq_length") or limit,
        prefix_ids=prefix,
        suffix_ids=suffix,
        prompts=said.get("prompts") or {},
        default_prompt_name=said.get("default_prompt_name"),
    )


def _pooling(folder: Path, written: Mapping[str, Any]) -> str:
    """Our name of the one pooling that a module's configuration asks for, in the new spelling or the old."""
    mode = written.get("pooling_mode")
    old = [k.removeprefix("pooling_mode_") for k, on in written.items() if k.startswith("pooling_mode_") and on]
    modes = [mode] if isinstance(mode, str) else list(mode or old or ["mean"])
    if len(modes) != 1 or modes[0] not in POOLING or written.get("include_prompt") is False:
        raise ConfigError(f"{folder}: pooling {dict(written)} is not supported", "Known: cls, mean, lasttoken")
    return POOLING[modes[0]]


def _surroundings(tokenizer: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after a text, from the post-processor of a `tokenizer.json`."""
    first = tokenizer.get("post_processor") or {}
    before: list[int] = []
    after: list[int] = []
    for step in (first, *first.get("processors", ())):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            before, after = [step["cls"][1]], [step["sep"][1]]
        seen = False
        for piece in step.get("single", ()):
            seen = seen or "Sequence" in piece
            if "SpecialToken" in piece:
                (after if seen else before).extend(step["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return tuple(before), tuple(after)


def _json(file: Path) -> Any:
    """The content of a JSON file, None where there is none."""
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}", "Restore the file") from None
