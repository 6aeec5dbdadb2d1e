"""`lmworks prove families`: every family is its reference, weight for weight and logit for logit.

For tiny random models of each family, built by `transformers`: the same logits and gradients, the same greedy tokens
through the engine's paged cache, folders that the reference reads back, tensors that survive a round trip byte for
byte.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError
from lmworks.core.progress import bar
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM
from lmworks.models.config import ModelConfig
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.hub.safetensors_io import SafetensorsSource
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs import reference
from lmworks.proofs.cases import all_cases
from lmworks.proofs.cases.case import Case
from lmworks.proofs.row import Row

LOGIT_BOUND, GRADIENT_BOUND = 1e-5, 1e-4
NEW_TOKENS = 12
CHECKS = ("logits", "gradients", "greedy", "export", "round trip")


@dataclass(frozen=True)
class FamilyRow(Row):
    """One check of one family: the worst of its cases."""

    family: str = ""
    check: str = ""


def prove(seed: int = 0, only: str | None = None) -> list[FamilyRow]:
    """Measure every family, or `only` one; one row per family and check.

    Raises:
        ConfigError: there is no such family, or no case of it.
    """
    cases = all_cases() if only is None else tuple(c for c in all_cases() if c.family == family_named(only).name)
    if not cases:
        raise ConfigError(f"no case of {only!r} is registered", "Add one to `proofs/cases`")
    measured: dict[tuple[str, str], list[tuple[float, str]]] = {}
    with bar("families", len(cases)) as progress:
        for case in cases:
            for check, value in measure(case, seed).items():
                measured.setdefault((case.family, check), []).append((value, case.name))
            progress.advance(1, case.family)
    rows = []
    for family in sorted({case.family for case in cases}):
        for check in (c for c in CHECKS if (family, c) in measured):
            values = measured[family, check]
            worst, name = max(values, key=lambda pair: (math.isnan(pair[0]), pair[0]))
            rows.append(row(family, check, worst, f"{len(values)} cases, worst: {name}"))
    return rows


def row(family: str, check: str, value: float, note: str = "") -> FamilyRow:
    """A row with the bound of its check."""
    what, bound = {
        "logits": ("max |Δ logit|", LOGIT_BOUND),
        "gradients": ("max relative error of a parameter's gradient", GRADIENT_BOUND),
        "greedy": ("greedy continuations that differ", 0.0),
        "export": ("max |Δ logit| of our folder in transformers", LOGIT_BOUND),
        "round trip": ("tensors that do not come back byte for byte", 0.0),
    }[check]
    return FamilyRow(f"{family}: {what}", value, bound, note=note, family=family, check=check)


def family_rows(case: Case, seed: int = 0) -> list[FamilyRow]:
    """The rows of one case."""
    return [row(case.family, check, value, case.name) for check, value in measure(case, seed).items()]


def measure(case: Case, seed: int = 0) -> dict[str, float]:
    """Every check that makes sense for the case: check to value."""
    theirs = reference.build(case, seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder, exported, gradients = (Path(temporary) / name for name in ("theirs", "ours", "gradients"))
        theirs.save_pretrained(folder)
        ours = load_pretrained(folder).eval()
        documents, types = _documents(ours.config, case.longest, seed)
        values = {}
        with torch.no_grad():
            expected = reference.outputs(theirs, documents, types)
            values["logits"] = _gap(our_outputs(ours, documents, types), expected)
            save_pretrained(ours, exported)
            again = reference.load(exported, case.architecture)
            values["export"] = _gap(reference.outputs(again, documents, types), expected)
            values["round trip"] = float(_changed_tensors(folder, exported, ours.config))
            if generates(ours.config):
                room = ours.config.max_position_embeddings - NEW_TOKENS
                prompts = [(p[:room], s) for p, s in documents]
                answers = [reference.greedy(theirs, prompt, NEW_TOKENS) for prompt in prompts]
                values["greedy"] = float(_differing(ours, prompts, answers))
        reference.gradients_as_weights(theirs, _loss(reference.outputs(theirs, documents, types), seed))
        theirs.save_pretrained(gradients)
        torch.autograd.backward(_loss(our_outputs(ours, documents, types), seed))
        values["gradients"] = _gradient_gap(ours, load_pretrained(gradients))
    return {check: values[check] for check in CHECKS if check in values}


def generates(config: ModelConfig) -> bool:
    """Whether the engine serves such a model."""
    return config.decoder is not None and config.decoder.causal and config.head.kind == "causal_lm"


def our_outputs(
    model: Transformer, documents: Sequence[reference.Document], types: Sequence[Tensor | None]
) -> dict[str, list[Tensor]]:
    """All documents packed into one batch; every kind of output by the reference's name, a tensor per document."""
    hidden, bounds = _hidden(model, documents, types)
    head = model.config.head

    def split(x: Tensor) -> list[Tensor]:
        return list(torch.split(x, bounds.diff().tolist()))

    match head.kind:
        case "masked_lm" if head.next_sentence:
            judged = model.document_logits(hidden, bounds)
            return {"prediction_logits": split(model.logits(hidden)), "seq_relationship_logits": list(judged)}
        case "causal_lm" | "masked_lm":
            return {"logits": split(model.logits(hidden))}
        case "token_classification":
            return {"logits": split(model.token_logits(hidden))}
        case "question_answering":
            start, end = model.token_logits(hidden).unbind(-1)
            return {"start_logits": split(start), "end_logits": split(end)}
        case "embedding":
            return {"last_hidden_state": split(hidden)}
        case "projection":
            return {"last_hidden_state": split(hidden), "embeds": list(model.embed_documents(hidden, bounds))}
        case _:
            return {"logits": list(model.document_logits(hidden, bounds))}


def _hidden(
    model: Transformer, documents: Sequence[reference.Document], types: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Hidden states of all documents, and where each begins and ends."""
    if model.config.vision is not None:
        return model.encode_images([image for image, _ in documents])
    ids, positions, bounds = _packed([target for target, _ in documents])
    memory, memory_bounds = None, None
    if documents[0][1] is not None:
        sources = [source for _, source in documents if source is not None]
        source_ids, source_positions, memory_bounds = _packed(sources)
        memory = model.encode(source_ids, source_positions, PackedContext(memory_bounds))
    segments = None if types[0] is None else torch.cat([t for t in types if t is not None])
    context = PackedContext(bounds, memory_cu_seqlens=memory_bounds)
    return model(ids, positions, context, memory=memory, token_type_ids=segments), bounds


def _documents(config: ModelConfig, longest: int, seed: int) -> tuple[list[reference.Document], list[Tensor | None]]:
    """Random documents of ragged lengths without special tokens, and their segments where the model tells them.

    Where a projection reads the last token it is the end of the text; a document of a model of images is an image.
    """
    generator = torch.Generator().manual_seed(seed)
    if (vision := config.vision) is not None:
        side, patch, channels = vision.image_size, vision.patch_size, vision.num_channels
        sizes = ((side, side), (side + patch, side + 2 * patch - 1), (2 * patch, 3 * patch + 1))
        return [(torch.randn(channels, *size, generator=generator), None) for size in sizes], [None] * len(sizes)

    def draw(length: int) -> Tensor:
        return torch.randint(5, config.vocab_size, (length,), generator=generator)

    lengths = (longest, 7, 19)
    if config.encoder is not None and config.decoder is not None:
        start = config.decoder_start_token_id
        documents: list[reference.Document] = []
        for length in lengths:
            target = draw(length // 2)
            target[0] = target[0] if start is None else start
            documents.append((target, draw(length)))
        return documents, [None] * len(documents)
    types = config.embed.type_vocab_size
    segments = [(torch.arange(n) * 2 // n).clamp(max=types - 1) if types > 1 else None for n in lengths]
    texts = [draw(n) for n in lengths]
    if config.head.kind == "projection":
        for text in texts:
            text[-1] = config.eos_token_ids[0]
    return [(text, None) for text in texts], segments


def _packed(documents: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor([0, *(len(d) for d in documents)])
    positions = torch.cat([torch.arange(len(d)) for d in documents])
    return torch.cat(list(documents)), positions, lengths.cumsum(0).to(torch.int32)


def _gap(ours: dict[str, list[Tensor]], theirs: dict[str, list[Tensor]]) -> float:
    assert set(ours) <= set(theirs), f"outputs {sorted(ours)} and {sorted(theirs)}"
    return max(
        float((a - b.view_as(a)).abs().max()) for name in ours for a, b in zip(ours[name], theirs[name], strict=True)
    )


def _loss(outputs: dict[str, list[Tensor]], seed: int) -> Tensor:
    """A random projection of all outputs."""
    generator = torch.Generator().manual_seed(seed + 2)
    parts = [
        (tensor * torch.randn(tensor.shape, generator=generator)).sum()
        for name in sorted(outputs)
        for tensor in outputs[name]
    ]
    return torch.stack(parts).sum()


@torch.no_grad()
def _gradient_gap(ours: Transformer, theirs: Transformer) -> float:
    """Largest relative error over parameters, small ones measured against the average gradient."""
    expected = dict(theirs.named_parameters())
    typical = torch.stack([g.norm() / g.numel() ** 0.5 for g in expected.values()]).mean()
    gaps = []
    for name, parameter in ours.named_parameters():
        wanted = expected[name].detach()
        got = torch.zeros_like(wanted) if parameter.grad is None else parameter.grad
        floor = 1e-2 * typical * wanted.numel() ** 0.5
        gaps.append(float((got - wanted).norm() / torch.maximum(wanted.norm(), floor)))
    return max(gaps)


def _changed_tensors(theirs: Path, ours: Path, config: ModelConfig) -> int:
    """Tensors of their file that ours lacks or holds otherwise, and the other way round."""
    row = family_named(config.family)
    repeated = set(row.aliases) | (set(row.tied) if config.tie_word_embeddings else set())
    sources = SafetensorsSource(theirs), SafetensorsSource(ours)
    unused = re.compile("|".join([f"({re.escape(row.prefix)})?({p})" for p in row.ignored(config)] or ["(?!)"]))
    names = [{n for n in source.shapes() if n not in repeated and not unused.fullmatch(n)} for source in sources]
    shared = names[0] & names[1]
    return len(names[0] ^ names[1]) + sum(not _same_bytes(*(s.tensor(n) for s in sources)) for n in shared)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def _differing(model: Transformer, documents: Sequence[reference.Document], answers: Sequence[Any]) -> int:
    prompts = [(prompt if source is None else source).tolist() for prompt, source in documents]
    generated = LLM(model).generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS))
    return sum(g.outputs[0].token_ids != answer for g, answer in zip(generated, answers, strict=True))
