"""Compiles every Triton kernel for GPUs that are not here, as the package's own functions would launch it.

    python tests/doubles/gpu_compiler.py 80 90

Prints a line of JSON for each kernel: its name, the architecture, the shared memory a program takes, whether it fetches
from memory while it computes. Instead of being
launched a kernel is compiled to machine code for the arguments that it was given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from lmworks.kernels.triton import gated_activation, paged_attention, quantized_matmul, rms_norm, rotary

TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int8: "*i8",
    torch.uint8: "*u8",
}  # fmt: skip
BFLOAT16 = torch.bfloat16


class Compiler:
    """Stands in for a kernel."""

    def __init__(self, kernel: JITFunction, architectures: list[int]) -> None:
        self.kernel, self.architectures = kernel, architectures

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, num_warps: int = 4, num_stages: int = 3, **named: object) -> None:
            values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
            assert values.keys() == set(self.kernel.arg_names), "a launch without all arguments"
            signature, constants, known = {}, {}, {}
            for i, parameter in enumerate(self.kernel.params):
                value = values[parameter.name]
                if parameter.is_constexpr or value is None:
                    signature[parameter.name], constants[(i,)] = "constexpr", value
                elif isinstance(value, torch.Tensor):
                    signature[parameter.name] = TYPES[value.dtype]
                else:
                    signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                whole = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
                if signature[parameter.name] != "constexpr" and whole and not parameter.do_not_specialize:
                    known[(i,)] = [["tt.divisibility", 16]]
            for architecture in self.architectures:
                compiled = triton.compile(
                    ASTSource(self.kernel, signature, constants, known), target=GPUTarget("cuda", architecture, 32),
                    options={"num_warps": num_warps, "num_stages": num_stages},
                )  # fmt: skip
                assert compiled.asm["cubin"]
                about = {"shared": compiled.metadata.shared, "asynchronous": "cp.async" in compiled.asm["ptx"]}
                print(json.dumps({"kernel": self.kernel.__name__, "architecture": architecture, **about}))

        return launch


def attend(tokens, sequences, width, groups, dtype, *, window=0, softcap=0.0, sinks=False, slopes=False):
    cache = torch.zeros(2, 2, 4, 16, width, dtype=dtype)
    query = torch.zeros(tokens, 2 * groups, width, dtype=dtype)
    tables, shares = torch.zeros(sequences, 100, dtype=torch.int32), torch.zeros(sequences, 4, dtype=torch.int32)
    by_head = torch.zeros(2 * groups)
    paged_attention.paged_attention(
        query, cache, tables, shares, 0.3, softcap, window, by_head if sinks else None, by_head if slopes else None
    )
    paged_attention.write_cache(cache, query[:, :2], query[:, :2], tables, shares)


def multiply(rows, bits, group_size, *, zero=False):
    weight = torch.zeros(64, 256 if bits == 8 else 128, dtype=torch.int8 if bits == 8 else torch.uint8)
    scale = torch.zeros(64, 256 // group_size if group_size else 1, dtype=torch.float16)
    quantized_matmul.quantized_matmul(
        torch.zeros(rows, 256, dtype=BFLOAT16), weight, scale, scale if zero else None, group_size
    )


def main() -> None:
    architectures = [int(number) for number in sys.argv[1:]]
    for module in (gated_activation, paged_attention, quantized_matmul, rms_norm, rotary):
        for name, kernel in vars(module).copy().items():
            if isinstance(kernel, JITFunction) and name in LAUNCHED:
                setattr(module, name, Compiler(kernel, architectures))
    attend(2, 2, 128, 4, BFLOAT16)
    attend(300, 2, 128, 4, BFLOAT16)
    attend(8, 2, 64, 1, BFLOAT16, window=40, softcap=1.0, sinks=True, slopes=True)
    attend(2, 2, 80, 7, torch.float16, window=40, sinks=True)
    attend(300, 2, 256, 2, torch.float32, slopes=True)
    for bits, group_size, zero in [(8, 0, False), (8, 32, False), (4, 32, False), (4, 128, True), (4, 0, False)]:
        multiply(1, bits, group_size, zero=zero)
        multiply(64, bits, group_size, zero=zero)
    x = torch.zeros(3, 4, 64, dtype=BFLOAT16)
    rms_norm.rms_norm(torch.zeros(2, 4096, dtype=BFLOAT16), torch.zeros(4096), 1e-5)
    for activation in ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2"):
        gated_activation.gated(x, x, activation)
    for interleaved in (False, True):
        rotary.turn(x, torch.zeros(3, 1, 32), torch.zeros(3, 1, 32), interleaved)


LAUNCHED = {
    "_attend_tile", "_join_splits", "_write_token", "_multiply_tile", "_normalize_row", "_gate_block", "_turn_vector",
}  # fmt: skip

if __name__ == "__main__":
    main()
