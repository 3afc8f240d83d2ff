"""The kernel of docs/kernels.md compiles: a GPU's compiler refuses what the interpreter takes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fusedstep.reference.multi_tensor_apply import OWN_HYPERS, facts

from tests.audit.compile_triton import TABLES
from tests.test_docs import ROOT, add_named_blocks

RULES = ("adamw", "lamadam", "laprop", "madgrad")  # with and without what a rule may have


@pytest.mark.parametrize("rule", RULES)
def test_the_kernel_of_the_page_compiles(rule, tmp_path):
    pytest.importorskip("triton")
    add_named_blocks(ROOT / "docs" / "kernels.md", tmp_path)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path}
    command = [sys.executable, __file__, rule]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compile_for(rule: str) -> None:
    import persistent
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    f32, own = torch.float32, facts(rule, 0)
    launch = SimpleNamespace(
        kind=SimpleNamespace(param_dtype=f32, grad_dtype=f32, exp_avg_dtype=f32),
        device=torch.device("cpu"),
        row_size=OWN_HYPERS + own.HYPERS,
        check_columns=lambda *_: None,
    )
    work = SimpleNamespace(rule=rule, variant=0, facts=own)
    persistent.Persistent().prepare(launch, work)
    _, constants = work.prepared
    options = {"enable_fp_fusion": constants.pop("enable_fp_fusion")}
    signature = {name: TABLES.get(name, "constexpr") for name in persistent.walk.arg_names}
    source = ASTSource(persistent.walk, signature, constants)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


if __name__ == "__main__":
    compile_for(sys.argv[1])
