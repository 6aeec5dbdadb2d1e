"""What does not go together is refused before anything starts, naming value, rule and remedy."""

import pytest
import torch

from lmworks.core.errors import ParallelError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.parallel_plan import tensor_plan
from lmworks.models.slots import AttentionConfig, MLPConfig, MoEConfig, NormConfig, ResidualConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import Batch, next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.source_target import PrefixBatch
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.support import check_support
from lmworks.proofs.parallel_objectives import _teacher


def model(**stack):
    fields = {
        "num_hidden_layers": 2, "attention": AttentionConfig(num_attention_heads=6, num_key_value_heads=3, head_dim=4),
        "mlp": MLPConfig(intermediate_size=16), **stack,
    }  # fmt: skip
    config = ModelConfig(vocab_size=64, hidden_size=24, max_position_embeddings=32, decoder=StackConfig(**fields))
    with torch.device("meta"):
        return build_model(config)


MOE = MoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)


@pytest.mark.parametrize(
    ("stack", "parallel", "words"),
    [
        ({}, {"pipeline": 2, "shard": 2}, "pipeline 2 and shard 2 do not go together"),
        ({}, {"pipeline": 2, "tensor": 2}, "pipeline 2 and tensor 2 do not go together"),
        ({}, {"pipeline": 2, "gradient_compression": "powersgd"}, "gradient_compression 'powersgd'"),
        ({}, {"pipeline": 4}, "2 different layers cannot be cut into 4 stages"),
        ({}, {"pipeline": 2, "pipeline_schedule": "zbv"}, "2 different layers cannot be cut into 4 stages"),
        ({}, {"tensor": 2}, "states no plan"),
        ({}, {"context": 4, "context_method": "ulysses"}, "decoder.layers.0.self_attn: 6 heads with 3 heads"),
        ({}, {"data": 2, "expert": 2}, "no layer with experts"),
        ({"mlp": MOE}, {"data": 3, "expert": 3}, "4 experts of a layer do not divide among 3 ranks"),
        ({"norm": NormConfig(kind="batch")}, {"data": 2}, "is a batch norm"),
        ({"residual": ResidualConfig(layerdrop=0.1)}, {"shard": 2}, "others wait in shard"),
    ],
)
def test_each_refusal_says_what_and_what_instead(stack, parallel, words):
    with pytest.raises(ParallelError, match=words) as caught:
        check_support(model(**stack), ParallelConfig(**parallel))
    assert caught.value.remedy


def test_what_goes_together_is_let_through():
    for parallel in (
        {}, {"data": 4}, {"shard": 2, "context": 2}, {"pipeline": 2, "data": 2}, {"context": 3},
        {"context": 3, "context_method": "ulysses"},
    ):  # fmt: skip
        check_support(model(), ParallelConfig(**parallel), num_microbatches=4)
    check_support(model(mlp=MOE), ParallelConfig(pipeline=2, data=2, expert=2), num_microbatches=4)
    with pytest.raises(ParallelError, match="at least 2 micro-batches"):
        check_support(model(), ParallelConfig(pipeline=2), num_microbatches=1)


def test_a_plan_that_names_another_module_is_refused():
    config = model().config
    with pytest.raises(ParallelError, match=r"decoder.layers.0.mlp.down_proj is a NoneType"):
        check_support(
            model(mlp=MOE), ParallelConfig(tensor=3), plan={"decoder.layers.0.mlp.down_proj": "row"}
        )  # fmt: skip
    with pytest.raises(ParallelError, match="vocab_size is 64"):
        tensor_plan(config, 3)


def test_a_batch_gives_its_tokens_and_refuses_where_it_knows_more_of_documents():
    batch = pack([next_token_document([1, 2, 3, 4]), next_token_document([5, 6])])
    part = batch.take(torch.tensor([1, 3]), torch.tensor([0, 1, 2], dtype=torch.int32))
    assert part.input_ids.tolist() == [2, 5]
    assert part.targets.tolist() == [3, 6]
    assert part.positions.tolist() == [1, 0]
    assert Batch.document_fields() == ()
    assert PrefixBatch.document_fields() == ("prefix_lengths",)


def test_a_teacher_does_not_see_pieces_of_documents():
    from lmworks.parallel.context import _refuse_whole_documents

    batch = pack([next_token_document([1, 2, 3, 4])])
    assert causal_lm(_teacher(), batch).loss_sum > 0
    with pytest.raises(ParallelError, match="that is not split, such as a teacher"):
        _refuse_whole_documents(_teacher(), (batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens)))
