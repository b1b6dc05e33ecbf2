"""The Triton kernels on Triton's interpreter, where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import engine_ranks as tools
from wattflow.config.choices import Model
from wattflow.engine.kernels import check
from wattflow.engine.ops import HeadNorms
from wattflow.engine.kernels.sets import cublas, one_row
from wattflow.engine.fused import FusedLlama
from wattflow.engine.ops import EAGER
from wattflow.engine.weights import reader

torch.set_num_threads(1)
model = Model(name="t", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=97)
text = torch.randint(0, 97, (1, 90), generator=torch.Generator().manual_seed(0))

def scores(prefill, step):
    fused = FusedLlama(model, tools.ALONE, reader(model, "dummy", "cpu"), dtype=torch.float32).with_cache(1, 96)
    for layer in fused.layers:  # wider than dummy weights, so that attention matters
        for matrix in (layer.wqkv, layer.wo, layer.w13, layer.w2):
            matrix.values.mul_(8)
    with torch.inference_mode():
        out = [fused.logits(fused.prefill(text[:, :86].tolist(), prefill), None, prefill)]
        for place in range(86, 90):
            out.append(fused.step(text[:, place].contiguous(), torch.tensor([place]), 96, step))
    return torch.stack(out)

right = scores(EAGER, EAGER)
for step in (cublas(), one_row({})):
    print(step.name, float((scores(cublas(), step) - right).norm() / right.norm()))
for dtype in (torch.float32, torch.float16):  # the interpreter's products take bf16 for integers
    from wattflow.engine.llama import rotary_table
    rotary = rotary_table(model, 200, dtype, "cpu").contiguous()
    gains = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    for heads, norms in ((1, None), (4, HeadNorms(gains, 1e-5)), (7, None)):
        cache = torch.zeros(1, 2, 64, 1, 200, 16, dtype=dtype)
        print(dtype, check.why_not(cache, rotary, heads, norms))
# the interpreter drops the carry of a mantissa that rounds up to the next power of two, so some numbers are halved
from wattflow.engine import products
from wattflow.engine.kernels import rowwise
x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).half()
ours, theirs = rowwise.rows8(x), products.rows8(x)
other = ours.values.float() != theirs.values.float()
print(float(other.float().mean()), float((ours.scales - theirs.scales).abs().max()))
matrix = products.quantised(torch.randn(96, 256, generator=torch.Generator().manual_seed(1)).half())
plain = products.Weight((matrix.values.float() * matrix.scales.t()).half())
right = products.product(x[:1], plain)
print(float((one_row({}).linear(x[:1], matrix, None) - right).norm() / right.norm()))
"""


def test_kernels_compute_what_plain_torch_does():
    """Triton's interpreter runs all kernels on the CPU: logits of prefill and steps within 1e-5, in both sets."""
    pytest.importorskip("triton", reason="Triton comes with torch for GPUs alone")
    if tuple(map(int, __import__("numpy").__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("Triton's interpreter needs NumPy below 2.4")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(here)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[:2]] == ["cublas", "triton"]
    assert all(float(error) < 1e-5 for _, error in lines[:2])
    assert [reason for _, reason in lines[2:8]] == ["None"] * 6
    others, scales = map(float, done.stdout.splitlines()[8].split())
    assert others < 0.05
    assert scales == 0.0
    assert float(done.stdout.splitlines()[9]) < 1e-3
