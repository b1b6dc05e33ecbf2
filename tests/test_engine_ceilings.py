"""What a machine copies and multiplies at most."""

import engine_ranks as tools

from wattflow.engine import ceilings


def test_ceilings_are_what_this_machine_does():
    """A copy and a product on the CPU give rates that are neither nothing nor beyond any machine."""
    made = ceilings.measure(tools.ALONE, "fp32")
    assert 1e8 < made["copy_bytes_per_s"] < 1e13
    assert 1e8 < made["product_flops_per_s"] < 1e15
    assert made["source"] == "copy of 0.0312 GiB, product of 512 in fp32, after the batches"
