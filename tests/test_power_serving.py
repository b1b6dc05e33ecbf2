"""What a sidecar does for a parent, whichever way it is spoken to."""

import os

import pytest
from traces import SIMULATED, new_attempt

from wattflow.config.choices import Control
from wattflow.errors import PowerError
from wattflow.power.open import choose
from wattflow.power.protocol import Commands, Settings
from wattflow.power.serving import Alone, Parent, serve, take_control


def test_limits_are_a_gpus():
    """The simulated meter has none to set; without a wish there is nothing to do."""
    meter = choose(SIMULATED, "n1")
    assert take_control(Control(), meter) is None
    with pytest.raises(PowerError, match="simulated measures none"):
        take_control(Control(power_limit_w=300), meter)


def test_an_attempt_is_recorded_between_open_and_close(tmp_path):
    """Stray commands before it are passed over; each mark reaches its surroundings, whose answer is passed on."""
    marks, replies, logs = [], [], []

    class Around(Alone):
        def mark(self):
            marks.append(1)

        def close(self):
            return {"slots": 2}

    attempt = new_attempt(tmp_path)
    (tmp_path / "spool").mkdir()
    reading, writing = os.pipe()
    where = f'"open": "{attempt.path}", "point_id": "0123456789ab", "attempt": 1, "log": "/l"'
    os.write(writing, b'{"close": true}\n{%s}\n{"mark": true}\n{"close": true}\n' % where.encode())
    os.close(writing)
    settings = Settings("n1", tmp_path / "spool", os.getpid(), SIMULATED, Control())
    commands = Commands(reading)
    serve(settings, Parent(commands, replies.append, logs.append, Around))
    commands.close()
    os.close(reading)
    assert [next(iter(reply)) for reply in replies][-3:] == ["so_far", "beside", "closed"]
    assert (len(marks), [str(path) for path in logs]) == (1, ["/l"])
    assert attempt.trace_path("n1", "host-n1").exists()
