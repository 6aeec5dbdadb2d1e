"""Contestants: transformers' Trainer, and a minimal loop in plain torch, both in bfloat16 by autocast with AdamW.

python train_worker.py THREADS trainer|loop [compiled]
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention with rotary positions and a gated feed-forward net, norms before both."""

    def __init__(self, hidden: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
        b, t, e = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, e))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of [B, H, T, D]."""
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


class Model(nn.Module):
    """A decoder with a tied head that returns the mean loss."""

    def __init__(self, case: dict) -> None:
        super().__init__()
        hidden, size = case["hidden"], case["hidden"] // case["heads"]
        self.embed = nn.Embedding(case["vocab"], hidden)
        self.blocks = nn.ModuleList(Block(hidden, case["heads"], case["intermediate"]) for _ in range(case["layers"]))
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        nn.init.normal_(self.embed.weight, std=0.02)
        angles = torch.arange(case["sequence"])[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of [B, T] targets."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def loop(case: dict, compiled: bool) -> list[float]:
    """When each of `steps` steps ended, after one that is not counted."""
    torch.manual_seed(0)
    ends = []
    model = Model(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(model) if compiled else model
    shape = (case["batch"], case["sequence"] + 1)
    for _ in range(case["steps"] + 1):
        tokens = torch.randint(0, case["vocab"], shape)
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        ends.append(time.perf_counter())
    return ends


class Tokens(torch.utils.data.Dataset):
    """Random rows for the Trainer."""

    def __init__(self, case: dict) -> None:
        self.rows = torch.randint(0, case["vocab"], ((case["steps"] + 1) * case["batch"], case["sequence"]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def trainer(case: dict, compiled: bool) -> list[float]:
    """When each of `steps` steps ended, after one that is not counted."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        """Notes when steps end."""

        def __init__(self) -> None:
            self.ends = []

        def on_step_end(self, *_: object, **__: object) -> None:
            """Note it."""
            self.ends.append(time.perf_counter())

    config = LlamaConfig(
        vocab_size=case["vocab"], hidden_size=case["hidden"], num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"], num_key_value_heads=case["heads"],
        intermediate_size=case["intermediate"], max_position_embeddings=case["sequence"], tie_word_embeddings=True,
        use_cache=False,
    )  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=case["steps"] + 1, per_device_train_batch_size=case["batch"], bf16=True, use_cpu=True,
            learning_rate=1e-4, max_grad_norm=1.0, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, torch_compile=compiled,
        )  # fmt: skip
        Trainer(LlamaForCausalLM(config), arguments, train_dataset=Tokens(case), callbacks=[clock]).train()
    return clock.ends


def main() -> None:
    """Answer lines of JSON."""
    torch.set_num_threads(int(sys.argv[1]))
    run, compiled = {"trainer": trainer, "loop": loop}[sys.argv[2]], "compiled" in sys.argv[3:]
    print("{}", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of memory so far
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer talks
            began = time.perf_counter()
            ends = run(case, compiled)
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
        tokens = case["steps"] * case["batch"] * case["sequence"]
        answer = {
            "seconds": ends[-1] - ends[0], "tokens": tokens, "peak_bytes": peak, "first_step_seconds": ends[0] - began,
        }  # fmt: skip
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
