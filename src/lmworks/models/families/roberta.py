"""RoBERTa and encoders with its head: XLM-R, CamemBERT, MPNet.

BERT's layers, positions that begin after the padding's id, a head that keeps nothing of the pooler (Liu et al., 2019,
arXiv:1907.11692; XLM-R, arXiv:1911.02116). MPNet adds T5's relative bias (arXiv:2004.09297).
"""

from __future__ import annotations

from lmworks.models.families.architectures import encoder_heads
from lmworks.models.families.bert import ABSOLUTE
from lmworks.models.families.encoder_like import (
    BERT_LAYER,
    BIASED,
    PLAIN_MLP,
    POST_NORM,
    TOKEN_TYPES,
    UNUSED,
    Inert,
    OffsetPositions,
    bert_embeddings,
    common,
    encoder_rules,
)
from lmworks.models.families.entries import Constant, Entry, Only
from lmworks.models.families.family import Family
from lmworks.models.hub.rules import Rule, rename

ENTRIES = (*common(pad=1), OffsetPositions(), *POST_NORM, *BIASED, *PLAIN_MLP, *ABSOLUTE)


def _family(
    name: str, stem: str, prefix: str, entries: tuple[Entry, ...], layer: dict[str, str], *,
    others: tuple[Rule, ...] = (),
) -> Family:  # fmt: skip
    return Family(
        name=name,
        architectures=encoder_heads(stem, lm_act="gelu", classifier_act="tanh", pooler=True),
        entries=entries,
        weight_rules=encoder_rules(
            bert_embeddings(f"{prefix}embeddings."),
            (f"{prefix}encoder.layer.{{i}}.", layer),
            {
                "masked_lm": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm"},
                "sequence_classification": {"dense": "classifier.dense", "score": "classifier.out_proj"},
                "token_classification": {"score": "classifier"},
                "question_answering": {"score": "qa_outputs"},
                "embedding": {"pooler": f"{prefix}pooler.dense"},
            },
            "lm_head.decoder",
            "lm_head.bias",
            others,
        ),
        prefix=prefix,
        tied=("lm_head.decoder.weight",),
        aliases={"lm_head.decoder.bias": "lm_head.bias"},
        ignored_tensors=UNUSED,
        optional={"head.pooler": "pooler.dense.weight"},
    )


ROBERTA = _family(
    "roberta", "Roberta", "roberta.", (*ENTRIES, TOKEN_TYPES), BERT_LAYER,
)  # fmt: skip
XLM_ROBERTA = _family(
    "xlm-roberta", "XLMRoberta", "roberta.", (*ENTRIES, TOKEN_TYPES), BERT_LAYER,
)  # fmt: skip
CAMEMBERT = _family(
    "camembert", "Camembert", "roberta.", (*ENTRIES, TOKEN_TYPES), BERT_LAYER,
)  # fmt: skip
MPNET = _family(
    "mpnet", "MPNet", "mpnet.",
    (
        *ENTRIES,
        Constant("encoder.pattern", "R"),
        Constant("encoder.layers", {"R": {"positions": {"kind": "relative_bias"}}}),
        Only("relative_attention_num_buckets", (32,), "the reference computes with 32 whatever it says", 32),
        Inert("type_vocab_size"),
    ),
    {f"self_attn.{p}_proj": f"attention.attn.{p}" for p in "qkvo"} | {"input_layernorm": "attention.LayerNorm"}
    | {ours: theirs for ours, theirs in BERT_LAYER.items() if not theirs.startswith("attention")},
    others=(rename("encoder.position_codes.0.weight", "mpnet.encoder.relative_attention_bias.weight"),),
)  # fmt: skip
