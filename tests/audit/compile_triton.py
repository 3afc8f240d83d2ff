"""Compiles the Triton kernels into a folder: ``python compile_triton.py FOLDER``.

This needs triton, but no GPU. It happens in a process of its own, because that of the tests may
have imported the kernels for the interpreter.
"""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

from fusedstep import testing
from fusedstep.reference.multi_tensor_apply import OWN_HYPERS, facts

# mode: opmath, param, grad, exp_avg, masters
MODES = {
    "f32": ("float32", "float32", "float32", "float32", False),
    "f64": ("float64", "float64", "float64", "float64", False),
    "f16": ("float32", "float16", "float16", "float32", False),
    "bf16-grad32-master-state16": ("float32", "bfloat16", "float32", "bfloat16", True),
}
VARIANTS = {  # of every rule, how many
    path.stem: int((re.search(r"kVariants = (\d+)", path.read_text()) or ("", 1))[1])
    for path in sorted((Path(__file__).parents[2] / "csrc" / "rules").glob("*.h"))
}
KERNELS = [
    f"sm_90 {rule} {variant} {mode}"
    for rule, variants in VARIANTS.items()
    for variant in range(variants)
    for mode in MODES
] + [
    f"{arch} {rule} 0 {mode}"
    for arch in ("sm_80", "sm_100")
    for rule in VARIANTS
    for mode in ("f32", "bf16-grad32-master-state16")
]
# columns of a row that are the rule's
HYPERS = {case.cls.rule: len(case.cls.hypers) for case in testing.CASES}

TABLES = {
    "address": "*i64", "grad": "*i64", "numel": "*i64", "row": "*i64", "chunk": "*i32",
    "hyper": "*fp64", "source": "*i64", "grad_scale": "*fp32", "found_inf": "*fp32",
    "grad_norm_sq": "*fp64", "ticket": "*i32", "tensors": "i32", "chunks": "i32",
}  # fmt: skip


def compile_kernel(name: str, folder: Path) -> None:
    """Writes the kernel's PTX and cubin: the one that takes a loss scale and can be skipped."""
    import torch
    import triton
    from fusedstep.kernels import enqueue as engine
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arch, rule, variant, mode = name.split()
    fields = ("opmath", "param_dtype", "grad_dtype", "exp_avg_dtype")
    dtypes = {field: getattr(torch, dtype) for field, dtype in zip(fields, MODES[mode])}
    work = SimpleNamespace(rule=rule, variant=int(variant), facts=facts(rule, int(variant)))
    launch = SimpleNamespace(
        row_size=OWN_HYPERS + HYPERS.get(rule, 0), master=MODES[mode][-1], **dtypes
    )
    constants = engine.constants(launch, work)
    sums = {
        "partial": "*fp64", "slots": "i32", "slot": "*i64", "segment": "*i64",
        "segment_begin": "*i64", "segment_chunks": "*i64", "segment_sums": "*i64",
        "segment_result": "*i64", "arrived": "*i32",
    }  # fmt: skip
    if not constants["SUMS"]:
        constants |= dict.fromkeys(sums)
    arguments = TABLES | sums | dict.fromkeys(constants, "constexpr")
    signature = {key: arguments[key] for key in engine.multi_tensor_apply.arg_names}
    source = ASTSource(engine.multi_tensor_apply, signature, constants)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    kernel = triton.compile(source, target=target, options=engine.options(launch, work))
    (folder / f"{name}.ptx").write_text(kernel.asm["ptx"])
    (folder / f"{name}.cubin").write_bytes(kernel.asm["cubin"])
    (folder / f"{name}.shared").write_text(str(kernel.metadata.shared))


if __name__ == "__main__":
    for kernel in KERNELS:
        compile_kernel(kernel, Path(sys.argv[1]))
