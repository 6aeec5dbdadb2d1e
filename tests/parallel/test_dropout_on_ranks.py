"""Dropout where ranks share rows: alike on what all of them hold, each rank's own on what is divided."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.parallel_plan import tensor_plan
from lmworks.models.slots import AttentionConfig, EmbedConfig, MLPConfig, ResidualConfig
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.consistency import require_equal_replicas
from lmworks.parallel.context import context_parallel
from lmworks.parallel.distribute import distribute
from lmworks.parallel.mesh import make_mesh
from lmworks.parallel.processes import run_processes

CONFIG = ModelConfig(
    vocab_size=66, hidden_size=24, max_position_embeddings=64, initializer_range=0.1, embed=EmbedConfig(dropout=0.2),
    decoder=StackConfig(
        num_hidden_layers=2,
        attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        mlp=MLPConfig(intermediate_size=40),
        residual=ResidualConfig(dropout=0.3),
    ),
)  # fmt: skip
SEED = 5


def rows():
    generator = torch.Generator().manual_seed(0)
    return pack([next_token_document(torch.randint(0, 66, (n,), generator=generator).tolist()) for n in (9, 4, 12)])


def gradients(model):
    full = {name: p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in full.items()}


@contextmanager
def dealt_out(ranks: int) -> Iterator[None]:
    """In one process, drop as ranks do that hold a run of the tokens each in all layers."""
    drop, states = F.dropout, []

    def dropout(x, p, training):
        if not states:  # of the embeddings, which all ranks hold
            states.append(None)
            return drop(x, p, training)
        if len(states) == 1:
            seed = int(torch.randint(2**62, ()))
            states[:] = [torch.Generator().manual_seed(seed + rank).get_state() for rank in range(ranks)]
        parts = []
        for rank, part in enumerate(x.chunk(ranks)):
            torch.set_rng_state(states[rank])
            parts.append(drop(part, p, training))
            states[rank] = torch.get_rng_state()
        return torch.cat(parts)

    with mock.patch.object(F, "dropout", dropout):
        yield


def gap_to_one_process(form: ParallelConfig) -> float:
    """The greatest relative difference of a gradient, with dropout."""
    model = build_model(CONFIG, seed=1)
    torch.manual_seed(SEED)
    with dealt_out(form.tensor) if form.sequence_parallel else nullcontext():
        causal_lm(model, rows()).loss_sum.backward()
    expected = gradients(model)
    plain = build_model(CONFIG, seed=1).eval()
    causal_lm(plain, rows()).loss_sum.backward()
    assert float((gradients(plain)["decoder.norm.weight"] / expected["decoder.norm.weight"] - 1).abs().max()) > 0.1
    mesh = make_mesh(form)
    model = build_model(CONFIG, seed=1)
    runner = distribute(model, mesh, plan=tensor_plan(CONFIG, form.tensor))
    torch.manual_seed(SEED)
    with runner.micro_batch(last=True):
        runner(causal_lm, rows()).loss_sum.backward()
    require_equal_replicas(model, mesh, gradients=True)
    found = gradients(model)
    return max(float((found[name] - g).norm() / g.norm()) for name, g in expected.items())


@pytest.mark.parametrize("tokens", [False, True], ids=["tokens whole", "tokens divided"])
def test_tensor_ranks_drop_what_one_process_drops(tokens: bool):
    form = ParallelConfig(tensor=2, sequence_parallel=tokens)
    assert max(run_processes(gap_to_one_process, 2, form)) <= 1e-5


def dropped_embeddings() -> list[list[bool]]:
    """Which elements of the caller's tokens are dropped before the first layer."""
    mesh, model, seen = make_mesh(ParallelConfig(context=2)), build_model(CONFIG, seed=1), []
    model.decoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append((args[0] == 0).tolist()))
    torch.manual_seed(SEED)
    runner = distribute(model, mesh)
    with runner.micro_batch(last=True):
        runner(context_parallel(causal_lm, mesh.group("context")), rows()).loss_sum.backward()
    return seen[0]


def test_ranks_with_other_tokens_of_a_document_drop_other_elements():
    one, other = (torch.tensor(mask).flatten() for mask in run_processes(dropped_embeddings, 2))
    length = min(len(one), len(other))
    alike = (one[:length] == other[:length]).float().mean()
    assert 0.6 < float(alike) < 0.76  # 0.8² + 0.2² of what is independent
