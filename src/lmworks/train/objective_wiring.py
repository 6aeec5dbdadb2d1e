"""From an `ObjectiveChoice` to what the trainer takes: the module, the loss, and what rows become.

Joins `objectives` with models and tokenizers; everything that could fail is checked before a step is made.
Knows no files and no loop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lmworks.core.errors import ConfigError, DataError
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.whole_documents import WholeDocuments
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.head_slots import MaskedLMHead
from lmworks.models.multi_token import MultiTokenTransformer
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.models.transformer import Transformer
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import Arrangement, Documents, TokenIds, packed
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.contrastive import contrastive, info_nce, siglip
from lmworks.objectives.draws import Draws
from lmworks.objectives.fill_in_the_middle import FillInTheMiddleConfig, fill_in_the_middle
from lmworks.objectives.masked_lm import MaskingConfig, mask_documents, masked_lm
from lmworks.objectives.multi_token import multi_token
from lmworks.objectives.permutation import permutation_lm, permute
from lmworks.objectives.replaced_tokens import mask_for_detection, replaced_token_detection
from lmworks.objectives.source_target import (
    Pairs,
    SourceTarget,
    for_decoder,
    for_encoder_decoder,
    prefix_lm,
    prefix_pairs,
    seq2seq,
)
from lmworks.objectives.span_corruption import SpanCorruptionConfig, span_corruption, span_sizes
from lmworks.objectives.ul2 import UL2Config, ul2
from lmworks.tokenization import Tokenizer
from lmworks.train.objective_choice import (
    SENTINELS,
    CausalLMObjective,
    ContrastiveObjective,
    LanguageModeling,
    MaskedLMObjective,
    ObjectiveChoice,
    PermutationObjective,
    PrefixLMObjective,
    ReplacedTokensObjective,
    Seq2SeqObjective,
    SpanCorruptionObjective,
    UL2Objective,
    check_model,
    shape_of,
)
from lmworks.train.step import Objective

UNREACHED = ("pooler", "seg_embed", "r_s_bias")
"""Parts of encoders that only pairs of segments use; no gradient reaches them here, so they stay as they are."""
UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]")
"""Characters of Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese, which put no spaces between words."""


@dataclass(frozen=True)
class WiredObjective:
    """What one objective makes of a run."""

    loss: Objective
    arrangement: Arrangement | None
    """What a row's documents become; None leaves packed rows as they are."""
    module: Callable[[Transformer, int], nn.Module]
    """What is trained, of the model and a seed: the model itself, or the model with a part that training alone has."""
    rows: type[PackedRows] = PackedRows
    """How documents are laid into rows."""

    @property
    def next_tokens(self) -> bool:
        """Whether rows are read as they are, from left to right."""
        return self.arrangement is None


def wire(objective: ObjectiveChoice, model: ModelConfig, tokenizer: Tokenizer, sequence_length: int) -> WiredObjective:
    """Check and connect an objective.

    Args:
        objective: the choice.
        model: what is to be trained.
        tokenizer: whose special tokens the objective uses.
        sequence_length: tokens of a row.

    Raises:
        ConfigError: the model is of another kind, the tokenizer lacks a token, or the model's context is too short.
    """
    check_model(objective, model)
    shape = shape_of(model)
    longest = longest_document(objective, shape, sequence_length)
    if longest > model.max_position_embeddings:
        raise ConfigError(
            f"the objective {objective.kind!r} makes documents of up to {longest} tokens of rows of {sequence_length}, "
            f"and the model's context is {model.max_position_embeddings}",
            "Lower train.sequence_length, or raise model.max_position_embeddings",
        )
    match objective:
        case CausalLMObjective(num_nextn_predict_layers=depths) if depths:
            loss: Objective = partial(multi_token, mtp_loss_weight=objective.mtp_loss_weight, z_loss=objective.z_loss)
            return WiredObjective(
                loss,
                _fill_in_the_middle(objective, tokenizer),
                lambda m, seed: MultiTokenTransformer(m, depths, seed=seed),
            )
        case CausalLMObjective():
            return WiredObjective(_smoothed(causal_lm, objective), _fill_in_the_middle(objective, tokenizer), _as_it_is)
        case MaskedLMObjective():
            continues = continues_word(tokenizer) if objective.whole_word else None
            shares = objective.mlm_probability, objective.mask_replace_prob, objective.random_replace_prob
            masking = _masking(tokenizer, objective.mask_token, *shares)
            arrangement = partial(mask_documents, config=masking, continues_word=continues)
            return WiredObjective(_smoothed(masked_lm, objective), arrangement, _as_it_is)
        case ReplacedTokensObjective():
            masking = _masking(tokenizer, objective.mask_token, objective.mlm_probability, 1.0, 0.0)
            return WiredObjective(
                partial(replaced_token_detection, discriminator_weight=objective.discriminator_weight),
                partial(mask_for_detection, config=masking),
                partial(GeneratorAndDiscriminator, generator_size=objective.generator_size),
            )
        case PermutationObjective():
            loss = partial(permutation_lm, z_loss=objective.z_loss)
            return WiredObjective(loss, partial(permute, predicted=objective.predicted), _trained_as_it_is)
        case ContrastiveObjective():
            compare = partial(info_nce, temperature=objective.temperature) if objective.loss == "info_nce" else siglip
            return WiredObjective(
                partial(contrastive, loss=compare, group_pairs=objective.pairs_per_row),
                partial(crop_pairs, pairs=objective.pairs_per_row, shortest=objective.shortest_crop),
                _trained_as_it_is,
            )
        case SpanCorruptionObjective() | UL2Objective() | PrefixLMObjective() | Seq2SeqObjective():
            pairs = _pairs(objective, tokenizer, sequence_length)
            if shape == "decoder":
                return _of_pairs(objective, prefix_lm, for_decoder(pairs), tokenizer)
            start = model.decoder_start_token_id
            if start is None:
                raise ConfigError(
                    f"the {model.family} model names no decoder_start_token_id, which its decoder begins with",
                    "Write it into the model's config.json",
                )
            return _of_pairs(objective, seq2seq, for_encoder_decoder(pairs, start), tokenizer)


def longest_document(objective: ObjectiveChoice, shape: str, sequence_length: int) -> int:
    """Tokens of the longest document that a row of `sequence_length` tokens can become."""
    match objective:
        case CausalLMObjective(fill_in_the_middle=rates) if rates is not None:
            return sequence_length + 2
        case SpanCorruptionObjective() | UL2Objective():
            both = max(sum(sizes) for sizes in _spans(objective, sequence_length))
            marks = 3 if isinstance(objective, UL2Objective) and objective.mode_tokens else 2
            spans = max(spans for _, spans in _spans(objective, sequence_length))
            if shape == "decoder":
                return sequence_length + 2 * spans + marks - 1
            return max(sequence_length + marks - 1, both + 1)
    return sequence_length


def continues_word(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """[V] whether a token goes on with the word before it: it begins with a letter, digit or mark, and no space.

    In scripts without spaces every token is a word, as in BERT's Chinese vocabulary.
    """
    inside = np.array([_goes_on(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.bool_)
    inside[sorted(tokenizer.special_token_ids)] = False
    return inside


def _goes_on(token: bytes) -> bool:
    first = token[:4].decode("utf-8", "replace")[:1]
    if first == "\ufffd":  # from within a character, or the beginning of one of two bytes: an alphabet's
        return 0x80 <= token[0] < 0xE0
    return unicodedata.category(first)[0] in "LMN" and not UNSPACED.match(first) if first else False


class GeneratorAndDiscriminator(nn.Module):
    """A model and a smaller one that fills its masks; they share token vectors (ELECTRA, arXiv:2003.10555).

    Args:
        discriminator: the model that is kept.
        seed: of the generator's weights.
        generator_size: heads and inner size of the generator, as a share of the discriminator's.

    Raises:
        ConfigError: the model has another attention or other nets than ELECTRA's.
    """

    def __init__(self, discriminator: Transformer, seed: int, *, generator_size: float) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.generator = build_model(_generator_config(discriminator.config, generator_size), seed=seed + 1)
        self.generator.embed_tokens = discriminator.embed_tokens
        self.generator.tie_weights()


def crop_pairs(documents: Documents, draws: Draws, *, pairs: int, shortest: float) -> Batch:
    """Two crops of each of exactly `pairs` texts, side by side; where there are fewer documents, halves of the longest.

    Raises:
        DataError: the row has too few tokens.
    """
    texts = [ids for ids in documents if len(ids) > 1]
    while 0 < len(texts) < pairs:
        longest = max(range(len(texts)), key=lambda i: len(texts[i]))
        middle = len(texts[longest]) // 2
        if middle < 2:
            break
        texts[longest : longest + 1] = [texts[longest][:middle], texts[longest][middle:]]
    if len(texts) < pairs:
        raise DataError(
            f"a row of {sum(map(len, documents))} tokens in {len(documents)} documents holds no {pairs} texts to crop",
            "Lower objective.pairs_per_row, or take longer rows",
        )
    crops = []
    for text in (texts[i] for i in draws.choose(len(texts), pairs)):
        for share in draws.uniform(2):
            length = max(1, round(len(text) * (shortest + share * (1 - shortest))))
            start = draws.below(len(text) - length + 1)
            crops.append(text[start : start + length])
    return packed(Batch, crops, crops, [np.ones(len(crop)) for crop in crops])


def teaching_or_nothing(arrangement: Arrangement, filler: TokenIds) -> Arrangement:
    """The arrangement; a row in which it finds nothing becomes `filler` arranged, with no weight."""

    def arrange(documents: Documents, draws: Draws) -> Batch:
        made = arrangement(documents, draws)
        if made.num_tokens:
            return made
        made = arrangement([filler], draws)
        return replace(made, loss_weights=torch.zeros_like(made.loss_weights))

    return arrange


def pairs_by_separator(documents: Documents, draws: Draws, *, separator: int) -> list[SourceTarget]:
    """What stands before the first separator, with it, and what follows; documents without either are left out."""
    found = []
    for ids in documents:
        places = np.flatnonzero(ids == separator)
        if len(places) and places[0] + 1 < len(ids):
            found.append(SourceTarget(*np.split(ids, [places[0] + 1])))
    return found


def _as_it_is(model: Transformer, seed: int) -> nn.Module:
    return model


def _trained_as_it_is(model: Transformer, seed: int) -> nn.Module:
    """The model, without gradients for what only pairs of segments reach."""
    for name, parameter in model.named_parameters():
        if set(UNREACHED) & set(name.split(".")):
            parameter.requires_grad_(False)
    return model


def _smoothed(loss: Callable[..., object], objective: LanguageModeling) -> Objective:
    """The loss with what all over a vocabulary share; itself where nothing is set."""
    changes = {"z_loss": objective.z_loss, "label_smoothing": objective.label_smoothing}
    set_ones = {name: value for name, value in changes.items() if value}
    made: Objective = partial(loss, **set_ones) if set_ones else loss  # type: ignore[assignment]  # all take both
    return made


def _token(tokenizer: Tokenizer, text: str) -> int:
    token = tokenizer.token_id(text)
    if token is None:
        raise ConfigError(
            f"the objective needs the token {text!r}, and the tokenizer has none",
            f"Train the tokenizer with `special_tokens: [{text!r}]`, or name another token in the objective",
        )
    return token


def _masking(tokenizer: Tokenizer, mask: str, chosen: float, masked: float, replaced: float) -> MaskingConfig:
    return MaskingConfig(
        mask_token_id=_token(tokenizer, mask), vocab_size=tokenizer.vocab_size, mlm_probability=chosen,
        special_token_ids=tuple(sorted(tokenizer.special_token_ids)), mask_replace_prob=masked,
        random_replace_prob=replaced,
    )  # fmt: skip


def _fill_in_the_middle(objective: CausalLMObjective, tokenizer: Tokenizer) -> Arrangement | None:
    rates = objective.fill_in_the_middle
    if rates is None:
        return None
    config = FillInTheMiddleConfig(
        prefix_token_id=_token(tokenizer, rates.prefix_token), suffix_token_id=_token(tokenizer, rates.suffix_token),
        middle_token_id=_token(tokenizer, rates.middle_token), fim_rate=rates.fim_rate,
        fim_spm_rate=rates.fim_spm_rate, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=next(iter(tokenizer.eos_token_ids), None),
    )  # fmt: skip
    return partial(fill_in_the_middle, config=config)


def _spans(objective: SpanCorruptionObjective | UL2Objective, length: int) -> list[tuple[int, int]]:
    """Hidden tokens and spans of a document of `length` tokens, for each way to hide them."""
    if isinstance(objective, SpanCorruptionObjective):
        return [span_sizes(length, objective.noise_density, objective.mean_noise_span_length)]
    return [
        (min(length - 1, round(2 * d.noise_density * length)), 1)
        if d.mode == "S"
        else span_sizes(length, d.noise_density, d.mean_noise_span_length)
        for d in objective.denoisers
    ]


def _pairs(
    objective: SpanCorruptionObjective | UL2Objective | PrefixLMObjective | Seq2SeqObjective,
    tokenizer: Tokenizer, length: int,
) -> Pairs:  # fmt: skip
    """How documents become pairs of source and target."""
    if isinstance(objective, PrefixLMObjective):
        return prefix_pairs
    if isinstance(objective, Seq2SeqObjective):
        ids = tokenizer.encode(objective.separator)
        if len(ids) != 1:
            raise ConfigError(
                f"the separator {objective.separator!r} is {len(ids)} tokens, and it must be one",
                "Choose one that the tokenizer keeps apart, such as a line break",
            )
        return partial(pairs_by_separator, separator=ids[0])
    sentinels: list[int] = []
    while (token := tokenizer.token_id(SENTINELS.format(len(sentinels)))) is not None:
        sentinels.append(token)
    needed = max(spans for _, spans in _spans(objective, length))
    if needed > len(sentinels):
        raise ConfigError(
            f"the objective {objective.kind!r} hides up to {needed} spans in rows of {length} tokens, and of the "
            f"sentinels {SENTINELS.format(0)}, {SENTINELS.format(1)}, ... the tokenizer has {len(sentinels)}",
            f"Train the tokenizer with `num_sentinels: {needed}`, take shorter rows or longer spans",
        )
    eos = next(iter(tokenizer.eos_token_ids), None)
    if isinstance(objective, SpanCorruptionObjective):
        hiding = SpanCorruptionConfig(
            sentinel_token_ids=tuple(sentinels), eos_token_id=eos, noise_density=objective.noise_density,
            mean_noise_span_length=objective.mean_noise_span_length,
        )  # fmt: skip
        return partial(span_corruption, config=hiding)
    modes = {mode: _token(tokenizer, token) for mode, token in objective.mode_tokens.items()}
    mixture = UL2Config(
        sentinel_token_ids=tuple(sentinels), eos_token_id=eos, mode_token_ids=modes, denoisers=objective.denoisers
    )
    return partial(ul2, config=mixture)


def _of_pairs(
    objective: LanguageModeling, loss: Callable[..., object], arrangement: Arrangement, tokenizer: Tokenizer
) -> WiredObjective:
    if not isinstance(objective, Seq2SeqObjective):
        return WiredObjective(_smoothed(loss, objective), arrangement, _as_it_is)
    filler = np.array(2 * tokenizer.encode(objective.separator))
    return WiredObjective(
        _smoothed(loss, objective), teaching_or_nothing(arrangement, filler), _as_it_is, WholeDocuments
    )


def _generator_config(model: ModelConfig, share: float) -> ModelConfig:
    stack = model.encoder
    assert stack is not None, "the model is an encoder"
    attention, mlp = stack.attention, stack.mlp
    if not isinstance(attention, AttentionConfig) or not isinstance(mlp, MLPConfig):
        raise ConfigError(
            f"a generator is made of softmax attention and dense nets, and {model.family} has {attention.kind} "
            f"attention and {mlp.kind} nets",
            "Use a model such as electra",
        )
    heads = max(1, round(attention.num_attention_heads * share))
    smaller = stack.model_copy(
        update={
            "attention": attention.model_copy(update={"num_attention_heads": heads, "num_key_value_heads": heads}),
            "mlp": mlp.model_copy(update={"intermediate_size": max(1, round(mlp.intermediate_size * share))}),
        }
    )
    width = model.embed.embedding_size or model.hidden_size
    size = heads * attention.head_dim
    embed = model.embed.model_copy(update={"embedding_size": width if width != size else None})
    head = MaskedLMHead(dense_act=mlp.hidden_act)
    changes = {"encoder": smaller, "hidden_size": size, "embed": embed, "head": head, "tie_word_embeddings": True}
    return model.model_copy(update=changes)
