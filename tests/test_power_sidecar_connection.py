"""A point's end of its node's sidecar, against a socket that the test answers."""

import json
import os
import socket
import threading

import pytest

from wattflow.config.choices import Control, Power
from wattflow.power.protocol import reachable
from wattflow.power.sidecar_connection import Common, SidecarConnection


@pytest.fixture
def listener(tmp_path):
    """A socket in a spool whose path is longer than a socket's name may be."""
    spool = tmp_path / ("x" * 120)
    spool.mkdir()
    with reachable(spool) as name, socket.socket(socket.AF_UNIX) as one:
        one.bind(name)
        one.listen()
        yield spool, one


def test_it_says_who_it_is_and_takes_lines_both_ways(listener):
    """Devices, power and control first; what is no JSON is passed over; the peer is this process."""
    spool, server = listener
    point = SidecarConnection(Common(str(spool), ["GPU-a"]), Power(poll_ms=20), Control())
    other, _ = server.accept()
    assert point.pid == os.getpid()
    hello = json.loads(other.makefile().readline())
    assert (hello["devices"], hello["power"]["poll_ms"]) == (["GPU-a"], 20)
    other.sendall(b'nonsense\n[1]\n{"ready": 1}\n')
    other.close()
    assert list(point.replies()) == [{"ready": 1}]
    assert point.is_dead
    point.send({"mark": True})  # to nobody
    assert point.wait() == 0


def test_its_end_is_an_end_of_input_there(listener):
    """hang_up lets the other side answer still; kill does not."""
    spool, server = listener
    point = SidecarConnection(Common(str(spool), []), Power(), Control())
    other, _ = server.accept()
    point.hang_up()
    assert other.makefile().read().count("\n") == 1
    answers = threading.Thread(
        target=lambda: (other.sendall(b'{"closed": "close"}\n'), other.close())
    )
    answers.start()
    assert list(point.replies()) == [{"closed": "close"}]
    answers.join()
    point.kill()
    point.end_idle()


def test_where_nothing_listens_is_an_error_of_the_system(tmp_path):
    """After its patience, here none."""
    with pytest.raises(OSError, match="No such file"):
        SidecarConnection(Common(str(tmp_path), []), Power(), Control(), patience_s=0.0)
