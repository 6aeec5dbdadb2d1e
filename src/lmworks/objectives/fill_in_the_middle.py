"""Fill in the middle: a causal model learns to write what stands between two texts (arXiv:2207.14255).

Documents are cut in three and put into another order; the loss is `causal_lm`, over all tokens. Knows no model.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from lmworks.core.config import Config
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import Documents, TokenIds, packed
from lmworks.objectives.draws import Draws

Share = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=0)]


class FillInTheMiddleConfig(Config):
    """How often, in which order, and the tokens that announce the parts."""

    prefix_token_id: TokenId
    suffix_token_id: TokenId
    middle_token_id: TokenId
    fim_rate: Share = 0.5
    """Share of documents that are rearranged."""
    fim_spm_rate: Share = 0.5
    """Share of these with the suffix before the prefix (SPM); the others have the prefix first (PSM)."""
    bos_token_id: TokenId | None = None
    """Stays at the beginning of a document that begins with it."""
    eos_token_id: TokenId | None = None
    """Stays at the end of a document that ends with it."""


def fill_in_the_middle(documents: Documents, draws: Draws, config: FillInTheMiddleConfig) -> Batch:
    """A batch for `causal_lm`; documents of a single token are left out.

    A rearranged document is three tokens longer.
    """
    arranged = [rearrange(ids, draws, config) for ids in documents if len(ids) > 1]
    return packed(
        Batch, [ids[:-1] for ids in arranged], [ids[1:] for ids in arranged], [np.ones(len(i) - 1) for i in arranged]
    )


def rearrange(token_ids: TokenIds, draws: Draws, config: FillInTheMiddleConfig) -> TokenIds:
    """The document as it is, or as PSM or SPM. The two cuts are drawn evenly, so a part may be empty.

    PSM is `<prefix> prefix <suffix> suffix <middle> middle`. SPM is `<prefix> <suffix> suffix <middle> prefix
    middle`, in which the prefix is read like a begun middle: the paper's variant for training on both orders.
    """
    if not draws.chance(config.fim_rate):
        return token_ids
    begin = int(token_ids[0] == config.bos_token_id)
    end = len(token_ids) - int(token_ids[-1] == config.eos_token_id)
    inner = token_ids[begin:end]
    prefix, middle, suffix = np.split(inner, np.sort(draws.integers(len(inner) + 1, 2)))
    announced = ([config.prefix_token_id], [config.suffix_token_id], [config.middle_token_id])
    p, s, m = (np.array(token, np.int64) for token in announced)
    spm, psm = (p, s, suffix, m, prefix, middle), (p, prefix, s, suffix, m, middle)
    order = spm if draws.chance(config.fim_spm_rate) else psm
    return np.concatenate([token_ids[:begin], *order, token_ids[end:]])
