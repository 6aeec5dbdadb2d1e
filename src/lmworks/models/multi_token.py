"""A causal model that also predicts tokens after the next one, depth by depth (DeepSeek-V3, arXiv:2412.19437).

Each depth is one more layer over the states of the depth before and the embeddings of the tokens that these were to
predict; embeddings and head are the model's. Knows no objective: `objectives/multi_token.py` asks it. For training:
what is exported and served is `model`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.mixers import norm_of
from lmworks.models.stack import Stack
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.quantized import QuantizedLinear


class MultiTokenDepth(nn.Module):
    """layer(projection([norm(hidden); norm(embedding)])), with the norm before the head.

    Args:
        size: E.
        hidden_norm: over the states.
        embedding_norm: over the embeddings.
        stack: one layer.
    """

    def __init__(self, size: int, hidden_norm: nn.Module, embedding_norm: nn.Module, stack: Stack) -> None:
        super().__init__()
        self.hidden_norm, self.embedding_norm = hidden_norm, embedding_norm
        self.projection = nn.Linear(2 * size, size, bias=False)
        self.stack = stack

    def forward(self, hidden: Tensor, embedded: Tensor, positions: Tensor, context: AttentionContext) -> Tensor:
        """[N, E] states, [N, E] embeddings -> [N, E]."""
        both = torch.cat([self.hidden_norm(hidden), self.embedding_norm(embedded)], dim=-1)
        return self.stack(self.projection(both), positions, context)


class MultiTokenTransformer(nn.Module):
    """A decoder with depths behind it.

    Args:
        model: the decoder, whose head every depth shares.
        num_nextn_predict_layers: tokens after the next one that are predicted, at least 1.
        seed: makes the new weights reproducible; None draws from torch's global generator.

    Raises:
        ConfigError: the model is no causal decoder alone, or embeds into another size than the hidden one.
    """

    def __init__(self, model: Transformer, num_nextn_predict_layers: int, *, seed: int | None = None) -> None:
        super().__init__()
        config = model.config
        decoder = config.decoder
        if decoder is None or config.encoder is not None or not decoder.causal or config.embed.embedding_size:
            raise ConfigError(
                f"a {config.family} model cannot look further ahead: that takes a causal decoder alone, with "
                "embeddings of the hidden size",
                "Use a decoder such as llama",
            )
        if num_nextn_predict_layers < 1:
            raise ConfigError(f"num_nextn_predict_layers {num_nextn_predict_layers} predicts nothing", "Give 1 or more")
        one_layer = decoder.model_copy(
            update={"num_hidden_layers": 1, "pattern": decoder.pattern[-1:], "num_hidden_groups": None}
        )
        one_layer = one_layer.model_copy(
            update={"layers": {k: v for k, v in decoder.layers.items() if k in one_layer.pattern}}
        )
        self.model = model
        self.depths = nn.ModuleList()
        for depth in range(num_nextn_predict_layers):
            own = None if seed is None else seed + depth
            stack = build_model(config.model_copy(update={"decoder": one_layer, "vocab_size": 1}), seed=own).decoder
            assert stack is not None, "the configuration has a decoder"
            size = config.hidden_size
            norms = [norm_of(decoder.norm, size) for _ in range(2)]
            added = MultiTokenDepth(size, norms[0], norms[1], stack)
            self.depths.append(added)
            generator = None if own is None else torch.Generator().manual_seed(own)
            nn.init.normal_(added.projection.weight, std=config.initializer_range, generator=generator)

    @property
    def num_nextn_predict_layers(self) -> int:
        """How many tokens after the next one it predicts."""
        return len(self.depths)

    def forward(self, input_ids: Tensor, positions: Tensor, context: AttentionContext) -> Tensor:
        """[N] -> [N, E], the model's own."""
        return self.model(input_ids, positions, context)

    def further(
        self, depth: int, hidden: Tensor, next_ids: Tensor, positions: Tensor, context: AttentionContext
    ) -> Tensor:
        """[N, E] -> [N, E], to predict one token further; see `objectives.multi_token.MultiTokenLM`."""
        return self.depths[depth](hidden, self.model.embed(next_ids), positions, context)

    @property
    def lm_head(self) -> nn.Linear | QuantizedLinear:
        """The model's."""
        return self.model.lm_head

    def before_head(self, hidden: Tensor) -> Tensor:
        """The model's."""
        return self.model.before_head(hidden)

    @property
    def logit_softcap(self) -> float | None:
        """The model's."""
        return self.model.logit_softcap
