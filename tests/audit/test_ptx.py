"""The machine that executes PTX: what its instructions compute, and what it finds wrong."""

import re
import shutil
import struct

import pytest
import torch

from tests.audit.test_cuda_code import REPOSITORY, compiled, entry_of
from tests.ptx import Kernel
from tests.ptx.backends import CudaPtx, assert_same_bits
from tests.ptx.parse import Unknown
from tests.test_bits import CASES, MODES

FILE = """
.version 8.0
.target sm_90
.shared .align 16 .b8 place[256];
.visible .entry small(
	.param .u64 small_param_0
)
.reqntid 64
{{
	.reg .pred %p<3>;
	.reg .b16 %rs<3>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	ld.param.u64 %rd1, [small_param_0];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 4;
	add.s64 %rd2, %rd1, %rd2;  // of 64 numbers the thread's own
	shl.b32 %r2, %r1, 2;
	xor.b32 %r3, %r2, 4;  // in shared memory, the neighbour's
	setp.eq.u32 %p0, %r1, 0;
	setp.lt.u32 %p1, %r1, 40;
	{body}
	ret;
}}
"""


def run(body: str, blocks: int = 1) -> torch.Tensor:
    """The 64 numbers that a small kernel of two warps has worked on; at first 0, 1, 2, ..."""
    numbers = torch.arange(64, dtype=torch.int32)
    kernel = Kernel(FILE.format(body=re.sub(r"(?<=[;:]) ", "\n\t", body)), "small")
    kernel(blocks, struct.pack("Q", numbers.data_ptr()), [(numbers.data_ptr(), 256)], seed=1)
    return numbers


FILL = "st.shared.u32 [%r2], %r1; bar.sync 0; "
SHARE = "ld.global.u32 %r4, [%rd2]; st.shared.u32 [%r2], %r4; {} ld.shared.u32 %r5, [%r3];"
SEND = "mov.u32 %r4, place; add.s32 %r4, %r4, %r2; cp.async.ca.shared.global [%r4], [%rd2], 4; {}"
SEND += " ld.shared.u32 %r5, [%r2];"
WRONG = {
    "st.global.u32 [%rd2+256], 1;": "4 bytes that belong to no tensor",
    "ld.global.v2.u32 {%r4, %r5}, [%rd2];": "8 bytes at an address not aligned so",
    "st.shared.u32 [%r2+256], 1;": "no such shared memory",
    FILL + "ld.shared.v2.u32 {%r4, %r5}, [%r3];": "not aligned to its access",
    FILL + SHARE.format(""): "without a barrier between",
    "ld.shared.u32 %r4, [%r2];": "nobody has written",
    "st.shared.u32 [place], %r1;": "without a barrier between",
    "st.global.u32 [%rd1], 1;": "written, in no order with what block 0 did",
    "@%p0 st.global.u32 [%rd1], 1; ld.global.u32 %r4, [%rd1];": "in no order",
    "@%p1 bra $END; bar.sync 0; $END:": "some threads have ended",
    "@%p1 bra $END; shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1; $END:": "not all of a warp",
    "shfl.sync.bfly.b32 %r4, %r1, 1, 31, 65535;": "a part of a warp",
    SEND.format("cp.async.commit_group;"): "before what was sent there has arrived",
    SEND.format("cp.async.commit_group; cp.async.wait_group 1;"): "has arrived",
    SEND.format("cp.async.wait_group 0;"): "has arrived",  # in no group
    SEND.format("st.shared.u32 [%r2], 1;"): "written while something is sent there",
}


@pytest.mark.parametrize("body", WRONG)
def test_what_a_gpu_would_do_wrong_is_an_error(body):
    with pytest.raises(RuntimeError, match=WRONG[body]):
        run(body)


def test_memory_beside_other_memory_belongs_to_nobody_else():
    numbers = torch.zeros(65, dtype=torch.int32)
    kernel = Kernel(FILE.format(body="st.global.v2.u32 [%rd1+256], {1, 2};"), "small")
    given, at = struct.pack("Q", numbers.data_ptr()), numbers.data_ptr()
    with pytest.raises(RuntimeError, match="8 bytes that belong to no tensor"):
        kernel(1, given, [(at, 260), (at + 260, 4)], seed=1)


def test_an_error_says_where():
    line = 1 + FILE.split("{body}")[0].count("\n")
    with pytest.raises(RuntimeError, match=rf"line {line}, block 0, thread \d+: 4 bytes"):
        run("st.global.u32 [%rd2+256], 1;")


def test_the_same_with_what_it_lacked():
    run("@%p0 st.global.u32 [%rd1], 1; bar.sync 0; ld.global.u32 %r4, [%rd1];")
    run("st.shared.u32 [place], 1; bar.sync 0; ld.shared.u32 %r4, [place];")
    found = run(SHARE.format("bar.sync 0;") + "st.global.u32 [%rd2], %r5;")
    assert found.tolist() == [i ^ 1 for i in range(64)]
    arrived = "cp.async.commit_group; cp.async.wait_group 0;"
    assert run(SEND.format(arrived) + "st.global.u32 [%rd2], %r5;").tolist() == [*range(64)]


# The first thread of each block stores a number and counts its block; the last one adds all up.
LAST = """
    mov.u32 %r4, %ctaid.x; mul.wide.u32 %rd3, %r4, 4; add.s64 %rd3, %rd1, %rd3; @!%p0 bra $END;
    st.global.u32 [%rd3+8], 7; atom.release.gpu.global.add.u32 %r5, [%rd1], 1;
    setp.ne.u32 %p1, %r5, 1; @%p1 bra $END; fence.acq_rel.gpu; ld.global.u32 %r6, [%rd1+8];
    ld.global.u32 %r7, [%rd1+12]; add.s32 %r6, %r6, %r7; st.global.u32 [%rd1+4], %r6; $END:
"""


def test_blocks_are_ordered_by_counts_and_fences():
    assert run(LAST, blocks=2)[1] == 14
    for weaker in (LAST.replace(".release", ".relaxed"), LAST.replace("fence.acq_rel.gpu; ", "")):
        with pytest.raises(RuntimeError, match="read, in no order with what block [01] did"):
            run(weaker, blocks=2)


COMPUTED = {  # into %r4
    "bfe.s32 %r4, 240, 4, 4;": -1,
    "bfe.s32 %r4, 112, 4, 4;": 7,
    "bfe.u32 %r4, 240, 4, 4;": 15,
    "bfe.s32 %r4, -2147483648, 28, 9;": -8,
    "bfi.b32 %r4, 5, 255, 4, 2;": 0xDF,
    "shl.b32 %r4, 1, 32;": 0,
    "shr.s32 %r4, -8, 40;": -1,
    "shr.u32 %r4, -8, 28;": 15,
    "mad.lo.s32 %r4, -3, 5, 1;": -14,
    "mul.wide.s32 %rd4, -3, 5; cvt.u32.u64 %r4, %rd4;": -15,
    "div.u32 %r4, -1, 65536;": 65535,
    "min.s32 %r4, -1, 1;": -1,
    "min.u32 %r4, -1, 1;": 1,
    "mov.b32 %r5, {1, 2}; mov.b32 {_, %rs1}, %r5; cvt.u32.u16 %r4, %rs1;": 2,
    "prmt.b32 %r4, 0x03020180, 0x07060504, 0x5180U;": 0x0501FF80,
    "cvt.rn.f16x2.f32 %r4, 0f3F800000, 0f477FF000;": 0x3C007C00,  # 1, and 65520 becomes inf
    "mov.u16 %rs1, 15360; sub.rn.f32.f16 %r4, %rs1, 0f40000000;": 0xBF800000 - 2**32,
    "mov.b64 %rd4, {2, 1065353216}; add.rn.f32x2 %rd4, %rd4, %rd4; mov.b64 {_, %r4}, %rd4;": 2**30,
    "cvt.rn.f32.f64 %r4, 0d3690000000000000;": 0,  # 2^-150, to even
    "cvt.rn.f32.f64 %r4, 0d3690000000000001;": 1,
    "mul.rn.f32 %r4, 0f00800000, 0f3F000000;": 0x00400000,  # subnormal
    "neg.f32 %r4, 0f00000000;": -(2**31),
    "abs.f32 %r4, 0fBF800000;": 0x3F800000,
    "setp.neu.f32 %p2, 0f7FC00000, 0f7FC00000; selp.b32 %r4, 1, 2, %p2;": 1,
    "setp.ne.f32 %p2, 0f7FC00000, 0f00000000; selp.b32 %r4, 1, 2, %p2;": 2,
    "setp.gt.s32 %p2, -1, 0; selp.b32 %r4, 1, 2, %p2;": 2,
    "setp.gt.u32 %p2, -1, 0; @!%p2 bra $END; mov.u32 %r4, 3; $END:": 3,
    "shfl.sync.bfly.b32 %r4, %r1, 3, 31, -1;": 3,  # of thread 0
    "shfl.sync.down.b32 %r4|%p2, %r1, 2, 31, -1;": 2,
    "shfl.sync.down.b32 %r5|%p2, %r1, 40, 31, -1; selp.b32 %r4, 1, 2, %p2;": 2,
}


def test_instructions():
    each = (body.replace("$END", f"$END{i}") for i, body in enumerate(COMPUTED))
    text = " ".join(
        f"{body} @%p0 st.global.u32 [%rd1+{4 * i}], %r4;" for i, body in enumerate(each)
    )
    found = run(text)[: len(COMPUTED)].tolist()
    assert dict(zip(COMPUTED, found, strict=True)) == COMPUTED


def test_threads_add_to_one_number():
    assert run("atom.global.gpu.acq_rel.add.u32 %r5, [%rd1+4], 1;")[1] == 65


@pytest.mark.parametrize(
    "instruction",
    [
        "fma.rn.f32 %r4, %r4, %r4, %r4;",
        "add.f32 %r4, %r4, %r4;",
        "mul.hi.u32 %r4, %r4, %r4;",
        "div.approx.f32 %r4, %r4, %r4;",
        "cvt.rzi.s32.f32 %r4, %r4;",
        "bar.sync 1;",
        "ld.local.u32 %r4, [%rd1];",
        "shl.b32 %rx4, %r4, 1;",
    ],
)
def test_what_is_not_translated_is_an_error(instruction):
    with pytest.raises(Unknown, match=re.escape(instruction[:-1])):
        run(instruction)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
@pytest.mark.parametrize(
    "instruction, number", [*(("bar.sync", i) for i in (0, 4, 8, 12)), ("fence.acq_rel", 0)]
)
def test_a_kernel_without_one_of_its_barriers_is_found_out(instruction, number):
    ptx, _, _ = compiled(REPOSITORY / "kernels" / "avagrad.cu", "sm_90")

    def without(launch, work):
        name = entry_of(ptx, work.variant, "f")
        begin = ptx.index(f".entry {name}")
        found = re.finditer(re.escape(instruction), ptx[begin : ptx.index("\n}", begin)])
        at = begin + [each.start() for each in found][number]
        return Kernel(f"{ptx[:at]}//{ptx[at:]}", name)

    case = next(case for case in CASES if case.id == "avagrad-paper")
    with pytest.raises((RuntimeError, AssertionError)):
        assert_same_bits(CudaPtx(without), case, MODES[0], "chunk")
