"""The messages to a sidecar."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from wattflow.config.choices import Control, Power
from wattflow.errors import RefusedError
from wattflow.power.protocol import Settings

# prints its commands up to the last
READER = """
import sys
from wattflow.power.protocol import Commands
commands = Commands(sys.stdin.fileno())
commands.take_signals()
while "end" not in (command := commands.wait(None)):
    print(command, flush=True)
print(command, flush=True)
"""


def test_settings_come_back_from_their_json():
    """Node, spool, parent and the choices of power and control, as the parent writes them."""
    argument = {
        "node": "n1",
        "spool": "/spool",
        "parent_pid": 42,
        "power": asdict(Power(meter="nvml", poll_ms=20)),
        "control": asdict(Control(power_limit_w=300)),
    }
    expected = Settings(
        "n1", Path("/spool"), 42, Power(meter="nvml", poll_ms=20), Control(power_limit_w=300)
    )
    assert Settings.parse(json.dumps(argument)) == expected


def test_a_node_s_name_cannot_lead_out_of_its_folder():
    """A name with a slash would be a path in the attempt's folder, and is refused."""
    argument = {"node": "../n1", "spool": "/s", "parent_pid": 1, "power": {}, "control": {}}
    with pytest.raises(RefusedError, match="node"):
        Settings.parse(json.dumps(argument))


def test_lines_are_commands_until_the_input_ends():
    """Two commands in one chunk come one by one; the end of the input is the last command."""
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input='{"mark": true}\n{"close": true}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "{'mark': True}",
        "{'close': True}",
        "{'end': 'end of stdin'}",
    ]


def test_sigterm_is_the_last_command():
    """A process that waits for commands learns of SIGTERM as one, and Ctrl-C is for its parent alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdin.write('{"mark": true}\n')
    process.stdin.flush()
    assert process.stdout.readline() == "{'mark': True}\n"
    process.send_signal(signal.SIGINT)
    process.terminate()
    # read before stdin is closed, which would be an end too
    assert process.stdout.readline() == "{'end': 'SIGTERM'}\n"
    assert process.communicate() == ("", None)
    assert process.returncode == 0
