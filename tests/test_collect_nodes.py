"""A command over two nodes whose windows are unlike: watts, net joules and tokens a second are joined node by node."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from measurements import call, row

from wattflow.collect.collect import collect
from wattflow.collect.nodes import rates
from wattflow.collect.quantities import Amount
from wattflow.collect.reading import DeviceKey, Spans
from wattflow.energy.curve import Joules
from wattflow.store.layout import SweepDir

pytest_plugins = ("fake_nvml.fixtures",)

S = 1_000_000_000
PROGRAM = """
import os, time, wattflow
seconds = (1, 3)[int(os.environ["SLURM_NODEID"])]
with wattflow.span("idle"): time.sleep(1)
with wattflow.span("work", tokens_out=100 * seconds): time.sleep(seconds)
"""


def joules(energy_j, seconds):
    return Joules(energy_j, 3.0, seconds, 1.0, 0.0, None)


def spans(rank, node, seconds, tokens, start_s=0):
    return Spans(
        measured=True,
        rank=rank,
        device=DeviceKey(node, f"GPU-{rank}"),
        phase=["work"],
        start_ns=np.array([start_s * S]),
        end_ns=np.array([start_s * S + round(seconds * S)]),
        tokens={"tokens_kept": [tokens], "tokens_in": [None], "tokens_computed": [None]},
    )


def part(node, tokens=None):
    return {"node": node, "tokens_out": tokens}


def test_rates_of_unlike_windows():
    """3,000 J in 10 s and 9,000 J in 30 s are 600 W and not 1,200 W; 10 tokens/s and 10 are 20, and not 40."""
    ranks = {0: spans(0, "n1", 10, 100), 1024: spans(1024, "n2", 30, 300, start_s=7)}
    of_nodes = {"n1": [joules(3000.0, 10.0)], "n2": [joules(9000.0, 30.0)]}
    hosts = {"n1": Amount(1000.0, 1.0), "n2": Amount(6000.0, 1.0)}
    found = rates(ranks, [part("n1"), part("n2")], of_nodes, {"host": hosts})
    assert found["power_w"] == pytest.approx(600.0)
    assert found["power_u_w"] == pytest.approx(np.hypot(0.3, 0.1))
    assert found["host_power_w"] == pytest.approx(300.0)
    assert found["tokens_per_s"] == pytest.approx(20.0)


def test_tokens_of_files_and_what_is_not_known():
    """Tokens of --tokens-json go before those of spans; joules, hosts and tokens that are unknown make no rate."""
    ranks = {0: spans(0, "n1", 10, None), 1024: spans(1024, "n2", 30, None)}
    assert rates(ranks, [part("n1", 50), part("n2")], {}, {"host": {}}) == {
        "power_w": None,
        "power_u_w": None,
        "host_power_w": None,
        "tokens_per_s": 5.0,
    }
    assert rates(ranks, [part("n1"), part("n2")], {}, {})["tokens_per_s"] is None


def test_ratios_of_sums_stay_where_windows_are_alike():
    """One node, or two whose windows are alike to 1 %: there is nothing to join."""
    assert rates({0: spans(0, "n1", 10, 5), 1: spans(1, "n1", 10, 5)}, [], {}, {}) == {}
    assert rates({0: spans(0, "n1", 10, 5), 1: spans(1, "n2", 10.09, 5)}, [], {}, {}) == {}
    assert rates({}, [], {}, {}) == {}


@pytest.mark.fake_nvml
def test_a_command_over_two_nodes(nvml_path, tmp_path, monkeypatch):
    """Two GPUs at a constant 300 W, for 1 s on one node and 3 s on the other: 600 W, 1,200 J, of which 0 J are net."""
    monkeypatch.chdir(tmp_path)
    step = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"}
    step |= {"SLURM_JOB_ID": "17", "FAKE_NVML_GPUS": "1", "FAKE_NVML_CURVE": "constant:300"}
    step |= {"FAKE_NVML_PROCESSES": "0"}

    def on_node(node):
        own = {"SLURM_NODEID": f"{node}", "SLURMD_NODENAME": f"n{node}"}
        options = ["--set", "power.meter=nvml"]
        call(sys.executable, "-c", PROGRAM, options=options, env=os.environ | step | own)

    with ThreadPoolExecutor() as both:
        list(both.map(on_node, range(2)))
    collect(SweepDir(tmp_path / "out"))
    found = row()
    assert found["power_w"] == pytest.approx(600.0, rel=1e-3)
    assert found["energy_j"] == pytest.approx(1200.0, rel=0.02)
    assert found["net_energy_j"] == pytest.approx(0.0, abs=1.0)
    assert found["tokens_kept"] == 400
    assert found["tokens_per_s"] == pytest.approx(200.0, rel=0.02)
    assert found["energy_per_token_j"] == pytest.approx(3.0, rel=0.02)
    assert found["valid"], found["reasons"]
