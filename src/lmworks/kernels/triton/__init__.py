"""Kernels for GPUs in Triton, each beside its formula in the package above. Import them only where Triton is there.

What they compute is checked on a CPU, in Triton's interpreter, against the formulas; that they compile for GPUs is
checked too. How fast they are, nobody has measured yet: sizes of tiles and numbers of warps are estimates.
"""
