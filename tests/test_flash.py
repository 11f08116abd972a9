"""FlashAttention by hand: equal to the definition, linear in memory, and its Triton kernel on a GPU or in the interpreter."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from gpt2_course.attention import attend, sdpa
from gpt2_course.config import UserError
from gpt2_course.flash import PeakBytes, flash, flash_forward, flash_triton, tiles

from conftest import offline_env

SHAPES = [(32, 32), (29, 29), (5, 23), (1, 17)]


def draw(T: int, S: int, **kind) -> list[torch.Tensor]:
    torch.manual_seed(T * 100 + S)
    return [torch.randn(2, 2, n, 16, **kind) for n in (T, S, S)]


def with_gradients(function, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.cos(torch.arange(out.numel(), dtype=out.dtype, device=out.device)).view_as(out))
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("tile", [1, 8, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition_in_float64(shape, tile):
    "Output and gradients, whole tiles and ragged ones, with and without a past, scores large enough to betray a missing rescale"
    q, k, v = draw(*shape, dtype=torch.float64)
    inputs = (q * 5, k, v)
    for ours, theirs in zip(with_gradients(lambda *x: flash(*x, tile=tile), inputs), with_gradients(attend, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)


def test_finite_differences():
    inputs = [x[:1, :1, :, :3].clone().requires_grad_() for x in draw(4, 7, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: flash(*x, tile=3), inputs)


def test_bfloat16_sums_in_float32():
    "As near to the float64 truth as PyTorch's kernel"
    inputs = draw(64, 64, dtype=torch.bfloat16)
    truth = attend(*(x.double() for x in inputs))
    error = lambda y: float((y.double() - truth).abs().max())
    assert flash(*inputs, tile=16).dtype == torch.bfloat16
    assert error(flash(*inputs, tile=16)) < 2 * error(sdpa(*inputs))


def test_the_future_is_skipped():
    "A triangle of tiles without a past; one query meets every tile of keys"
    assert len(list(tiles(64, 64, 8))) == 8 * 9 // 2
    assert len(list(tiles(1, 64, 8))) == 8


def test_memory_is_linear():
    def most(T):
        inputs = [torch.randn(1, 1, T, 16, requires_grad=True) for _ in range(3)]
        with PeakBytes() as peak:
            flash(*inputs, tile=16).sum().backward()
        return peak.most

    assert most(512) < 2.1 * most(256)


def test_second_derivative_is_refused():
    leaves = [x.requires_grad_() for x in draw(4, 4)]
    (grad,) = torch.autograd.grad(flash(*leaves, tile=2).square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


@pytest.mark.parametrize("wrong", [dict(dropout=0.1), dict(tile=0)])
def test_wrong_options(wrong):
    with pytest.raises(UserError):
        flash(*draw(4, 4), **wrong)
    with pytest.raises(UserError, match="queries"):
        flash(*draw(8, 4))
    with pytest.raises(UserError, match="power of two"):
        flash_triton(*draw(4, 4), 24)


INTERPRET = """
import torch
from gpt2_course.flash import flash_forward, flash_triton
for T, S in ((32, 32), (29, 29), (5, 40)):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, n, 16) for n in (T, S, S)]
    for ours, plain in zip(flash_triton(*inputs, 16), flash_forward(*inputs, 16)):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
print("equal")
"""


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
def test_kernel_in_the_interpreter():
    done = subprocess.run([sys.executable, "-c", INTERPRET], env=offline_env(TRITON_INTERPRET="1"), capture_output=True, text=True, timeout=300)
    assert done.stdout == "equal\n", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 2e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("shape", [(256, 256), (200, 200), (33, 150), (1, 70)])
def test_kernel_on_a_gpu(shape, dtype, atol):
    "Forward by the kernel, backward by recomputation"
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, n, 64, device="cuda", dtype=dtype) for n in (shape[0], shape[1], shape[1])]
    out, lse = flash_triton(*inputs, 32)
    plain, lse2 = flash_forward(*(x.float() for x in inputs), 32)
    torch.testing.assert_close(out.float(), plain, atol=atol, rtol=1e-2)
    torch.testing.assert_close(lse, lse2, atol=atol, rtol=1e-2)
    ours = with_gradients(lambda *x: flash(*x, tile=32, forward=flash_triton), inputs)
    theirs = with_gradients(attend, [x.float() for x in inputs])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b, atol=10 * atol, rtol=5e-2)
