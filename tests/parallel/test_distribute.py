"""Divided models of several kinds give the gradients of whole ones; precision, offload, compression do as they say."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from lmworks.core.errors import ParallelError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.parallel_plan import shard_units, tensor_plan
from lmworks.models.position_slots import AlibiPositions, RelativeBiasPositions
from lmworks.models.slots import AttentionConfig, MLAConfig, MLPConfig, MoEConfig, NormConfig, ResidualConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm, token_loss
from lmworks.objectives.loss import Loss
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.consistency import gradient_norm, require_equal_replicas
from lmworks.parallel.distribute import distribute
from lmworks.parallel.mesh import make_mesh
from lmworks.parallel.processes import run_processes
from lmworks.proofs.tiny import GPT2, LLAMA

HEADS = AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
NET = MLPConfig(intermediate_size=40)


def decoder(**fields):
    stack = {"num_hidden_layers": 2, "attention": HEADS, "mlp": NET, **fields.pop("stack", {})}
    return ModelConfig(
        vocab_size=66, hidden_size=24, max_position_embeddings=64, initializer_range=0.1, decoder=StackConfig(**stack),
        **fields,
    )  # fmt: skip


MLA = MLAConfig(
    num_attention_heads=4, q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8,
    attention_bias=True,
)  # fmt: skip
MOE = MoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_intermediate_size=20)
SOURCE = StackConfig(num_hidden_layers=2, attention=HEADS, mlp=NET, causal=False)
MODELS = {
    "biases, LayerNorm, learned positions, tied": GPT2.model_copy(update={"vocab_size": 132}),
    "ALiBi, parallel branches": decoder(positions=AlibiPositions(), stack={"placement": "parallel"}),
    "gates, norms of queries and keys, sandwich": decoder(
        stack={
            "attention": HEADS.model_copy(update={"qk_norm": "per_head", "qkv_bias": True, "o_bias": True}),
            "mlp": NET.model_copy(update={"bias": True}),
            "placement": "sandwich",
            "residual": ResidualConfig(gate="layerscale", layerscale_init=0.5),
        },
        tie_word_embeddings=False,
    ),
    "latent attention, experts": decoder(stack={"attention": MLA, "mlp": MOE, "norm": NormConfig()}),
    "encoder and decoder, trained biases of scores": decoder(
        positions=RelativeBiasPositions(relative_attention_num_buckets=8, relative_attention_max_distance=20),
        encoder=SOURCE,
        stack={"cross_attention": HEADS},
    ),
}


def batch(lengths, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    return pack([next_token_document(d) for d in documents])


def objective(model, rows):
    if model.encoder is None or model.decoder is None:
        return causal_lm(model, rows, z_loss=1e-2, label_smoothing=0.1)
    memory = model.encode(rows.input_ids.flip(0), rows.positions, PackedContext(rows.cu_seqlens))
    context = PackedContext(rows.cu_seqlens, memory_cu_seqlens=rows.cu_seqlens)
    hidden = model(rows.input_ids, rows.positions, context, memory=memory)
    return Loss(token_loss(model, hidden, rows.targets, rows.loss_weights), rows.loss_weights.sum())


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(model):
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def worst(reference, found):
    assert reference.keys() == found.keys()
    # Some gradients are zero but for rounding: a bias of all keys changes no softmax.
    floor = 1e-3 * float(torch.nn.utils.get_total_norm(list(reference.values())))
    return max(float((found[n] - g).norm() / g.norm().clamp(min=floor)) for n, g in reference.items())


def divided_gaps(form):
    """Of every model: the worst relative difference of a gradient, of the loss, of the norm, and of logits."""
    gaps = {}
    for name, config in MODELS.items():
        rows = batch((9, 4, 12), config.vocab_size)  # 22 targets, and 11 of them are of a rank with two
        model = build_model(config, seed=1)
        loss = objective(model, rows)
        torch.autograd.backward(loss.loss_sum)
        expected, norm = gradients(model), float(torch.nn.utils.get_total_norm(list(gradients(model).values())))
        with torch.no_grad():
            logits = model.logits(torch.ones(3, config.hidden_size))
        mesh = make_mesh(form)
        model = build_model(config, seed=1)
        plan = tensor_plan(config, form.tensor)
        runner = distribute(model, mesh, plan=plan, units=shard_units(config))
        with runner.micro_batch(last=True):
            found = runner(objective, rows)
            torch.autograd.backward(found.loss_sum)
        copies = mesh.config.batch_degree  # every reader had the same rows
        divided = {n: g / copies for n, g in gradients(model).items()}
        require_equal_replicas(model, mesh)
        require_equal_replicas(model, mesh, gradients=True)
        gaps[name] = (
            worst(expected, divided),
            abs(found.loss_sum.item() / loss.loss_sum.item() - 1),
            abs(gradient_norm(model, mesh) / copies / norm - 1),
            float((runner(head_logits) - logits).abs().max()),
        )
    return gaps


@torch.no_grad()
def head_logits(model):
    return model.logits(torch.ones(3, model.config.hidden_size))


@pytest.mark.parametrize(
    "form",
    [
        ParallelConfig(tensor=2),
        ParallelConfig(tensor=2, sequence_parallel=False),
        ParallelConfig(tensor=2, shard=2),
    ],
    ids=["tokens divided", "tokens whole", "weights sharded too"],
)
def test_divided_models_give_the_gradients_of_whole_ones(form):
    for gaps in run_processes(divided_gaps, form.world_size, form):
        for name, values in gaps.items():
            assert max(values[:3]) < 2e-6, (name, values)
            assert values[3] < 1e-5, (name, values)


def refused():
    mesh = make_mesh(ParallelConfig(tensor=2))
    errors = []
    config = MODELS["ALiBi, parallel branches"]
    model = build_model(config, seed=0)
    for plan in (None, {"embed_tokens": "vocabulary", "decoder.norm": "column"}):
        try:
            distribute(model, mesh, plan=plan)
        except ParallelError as error:
            errors.append(str(error))
    untouched = type(model.embed_tokens).__name__
    return errors, untouched


def test_a_plan_that_does_not_fit_changes_nothing():
    for errors, untouched in run_processes(refused, 2):
        assert "states no plan" in errors[0]
        assert "decoder.norm is a RMSNorm and cannot be divided by column" in errors[1]
        assert untouched == "Embedding"


def update(form, precision, compression_steps=1):
    """Gradients after some steps on the same rows, beside those of one process."""
    config = LLAMA
    shares = [batch((9, 4), config.vocab_size, 0), batch((12, 5, 7), config.vocab_size, 1)]
    model = build_model(config, seed=1)
    for share in shares:
        torch.autograd.backward(causal_lm(model, share).loss_sum)
    expected = gradients(model)
    mesh = make_mesh(form)
    model = build_model(config, seed=1)
    runner = distribute(model, mesh, units=shard_units(config), precision=precision)
    for _ in range(compression_steps):
        model.zero_grad()
        with runner.micro_batch(last=True):
            torch.autograd.backward(runner(causal_lm, shares[mesh.batch_rank]).loss_sum)
    before = list(model.parameters())
    with torch.no_grad():
        evaluated = float(runner(causal_lm, shares[0]).loss_sum)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True)), "it left gathered weights behind"
    return worst(expected, gradients(model)), {p.grad.dtype for p in model.parameters()}, evaluated


@pytest.mark.parametrize(
    ("form", "precision", "steps", "low", "high"),
    [
        (ParallelConfig(shard=2, cpu_offload=True), torch.float32, 1, 0, 1e-6),
        (ParallelConfig(shard=2), torch.bfloat16, 1, 1e-5, 5e-2),
        (ParallelConfig(data=2, gradient_compression="bfloat16"), torch.float32, 1, 1e-5, 1e-2),
        (ParallelConfig(data=2, gradient_compression="powersgd"), torch.float32, 1, 0, 1e-6),
        (ParallelConfig(data=2, gradient_compression="powersgd"), torch.float32, 12, 1e-2, 2.0),
    ],
    ids=["offload", "bfloat16", "compressed to bfloat16", "PowerSGD warming up", "PowerSGD"],
)
def test_precision_offload_and_compression(form, precision, steps, low, high):
    results = run_processes(update, 2, form, precision, steps)
    assert results[0][0] == results[1][0]
    gap, types, evaluated = results[0]
    assert low <= gap <= high
    assert types == {torch.float32}
    reference = causal_lm(build_model(LLAMA, seed=1), batch((9, 4), LLAMA.vocab_size, 0)).loss_sum.item()
    assert evaluated == pytest.approx(reference, rel=2e-2 if precision == torch.bfloat16 else 1e-6)


def stages():
    """Of every stage of ZeRO: is a block's weight whole after forward, after backward; are gradients split by then?"""
    found = []
    for stage in (1, 2, 3):
        mesh = make_mesh(ParallelConfig(shard=2, zero_stage=stage))
        model = build_model(LLAMA, seed=1)
        runner = distribute(model, mesh, units=shard_units(LLAMA))
        parts = list(model.decoder.layers[0].parameters())
        up_proj, rows = model.decoder.layers[0].mlp.up_proj, batch((9, 4), LLAMA.vocab_size)
        with runner.micro_batch(last=False):
            loss = runner(causal_lm, rows)
            forward = not isinstance(up_proj.weight, DTensor)
            torch.autograd.backward(loss.loss_sum)
        found.append((forward, not isinstance(up_proj.weight, DTensor), all(p.grad is not None for p in parts)))
        with runner.micro_batch(last=True):
            torch.autograd.backward(runner(causal_lm, rows).loss_sum)
        assert all(isinstance(p, DTensor) and isinstance(p.grad, DTensor) for p in model.parameters())
    return found


def test_stages_keep_whole_what_they_say():
    assert run_processes(stages, 2)[0] == [(True, True, False), (True, True, True), (False, False, True)]
