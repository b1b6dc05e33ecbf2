"""What a machine copies and multiplies at most."""

import engine_ranks as tools

from wattflow.engine import ceilings


def test_ceilings_are_what_this_machine_does():
    """A copy and a product on the CPU give rates that are neither nothing nor beyond any machine."""
    made = ceilings.measure(tools.ALONE, "fp32")
    assert 1e8 < made["copy_bytes_per_s"] < 1e13
    assert 1e8 < made["product_flops_per_s"] < 1e15
    assert made["source"] == "copy of 0.0312 GiB, product of 512 in fp32, after the batches"


def test_a_gpu_s_copy_before_the_load_counts_where_it_is_the_better_one(monkeypatch):
    """1e15 is beyond any copy that is timed here, and the source says that there were two; 1 is below any."""
    monkeypatch.setitem(ceilings._copied, "cpu", 1e15)
    made = ceilings.measure(tools.ALONE, "fp32")
    assert made["copy_bytes_per_s"] == 1e15
    assert "the better of before the load and after" in made["source"]
    monkeypatch.setitem(ceilings._copied, "cpu", 1.0)
    assert ceilings.measure(tools.ALONE, "fp32")["copy_bytes_per_s"] > 1e8


def test_a_cpu_s_memory_is_not_looked_at_before_the_load():
    ceilings.look_before_load(tools.ALONE)
    assert ceilings._copied == {}


def test_fp8_has_a_ceiling_of_its_own():
    """On a CPU the product of what fp8 stands for."""
    made = ceilings.measure(tools.ALONE, "fp8")
    assert 1e8 < made["product_flops_per_s"] < 1e15
    assert "product of 512 in fp8" in made["source"]
