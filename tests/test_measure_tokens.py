"""Tokens that a measured command reports in JSON, in a file or on its output."""

import os
import time

import pytest
from measurements import SEVENTY_W, call, python, row

from wattflow.measure import tokens as measure_tokens


@pytest.mark.parametrize(
    ("text", "key", "tokens"),
    [
        ('{"usage": {"completion_tokens": 40}}', "usage.completion_tokens", 40),
        ('[{"n": 3}, {"n": 4}, {"m": 9}]', "n", 7),
        ('{"n": 3}\n{"n": 5}\nno json\n', "n", 8),
        ('{"outputs": [{"n": 3}, {"n": 4}]}', "outputs.n", 7),
        ('{"lengths": [3, 4, 5]}', "lengths", 12),
        ('{"n": 3.5}', "n", None),
        ('{"n": true}', "n", None),
        ("", "n", None),
        ('{"n": 3}\n{"n": null}\n{"m": -1}\n', "n", 3),
        ('{"n": 3}\n{"n": -4}\n', "n", None),
        ('{"n": 3}\n{"n": 4.5}\n', "n", None),
        ('{"n": 3}\n{"n": "4"}\n', "n", None),
        ('{"n": 3}\n{"n": NaN}\n', "n", None),
        ('{"n": 3}\n{"n": {"a": 1}}\n', "n", None),
        ('{"n": 3}\n{"n": 1e3}\n', "n", None),
        ('{"n": 3}\n{"n": 4', "n", None),  # cut
        ('{"n": [3, true]}', "n", None),
        ('{"n": [3, -1]}', "n", None),
        ('{"n": 9223372036854775807}', "n", None),
        ('{"n": 1%s}' % ("0" * 5000), "n", None),
        ('{"a": %s' % ("[" * 100_000), "n", None),
    ],
)
def test_tokens_in_a_file(tmp_path, text, key, tokens):
    """A dotted key of JSON or JSON lines, summed over lists; no whole number, no tokens, and why."""
    path = tmp_path / "tokens.json"
    path.write_text(text)
    found, reason = measure_tokens._tokens_in_file(path, key, time.time_ns())
    assert found == tokens
    assert (reason is None) == (tokens is not None)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to a device"])
def test_what_is_no_file_has_no_tokens_and_no_wait(tmp_path, kind):
    """A FIFO that nobody writes, a folder, a link to /dev/zero: said at once."""
    path = tmp_path / "tokens.json"
    {
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "link to a device": lambda p: p.symlink_to("/dev/zero"),
    }[kind](path)
    found, reason = measure_tokens._tokens_in_file(path, "n", 0)
    assert found is None
    assert "not a regular file" in reason


def test_a_line_of_the_output_that_does_not_end(where):
    """100 MB without a newline are passed on in seconds; tokens of other lines stay, as the line is no JSON."""
    options = [*SEVENTY_W, "--tokens-json", "-", "--tokens-key", "n"]
    code = """
import sys
print('{"n": 3}', flush=True)
for _ in range(100): sys.stdout.write("x" * 1_000_000)
print(flush=True)
print('{"n": 4}', flush=True)
"""
    start_s = time.monotonic()
    done = call(*python(code), options=options)
    assert time.monotonic() - start_s < 40
    assert len(done.stdout) == 100_000_000 + len('{"n": 3}\n\n{"n": 4}\n')
    assert row()["tokens_kept"] == 7


@pytest.mark.parametrize("line", ['{"n": -4}', '{"n": 2.5}', '{"n": 1%s}' % ("0" * 30)])
def test_one_line_that_is_no_count_makes_the_tokens_unknown(where, line):
    """Their sum without it would be too small, and the energy of a token too large."""
    options = [*SEVENTY_W, "--tokens-json", "-", "--tokens-key", "n"]
    done = call("sh", "-c", f"""echo '{{"n": 3}}'; echo '{line}'; sleep 0.3""", options=options)
    found = row()
    assert (found["tokens_kept"], found["energy_per_token_j"]) == (None, None)
    assert "tokens_untold" in found["reasons"]
    assert "is no count of tokens (at n)" in done.stderr


def test_a_file_older_than_the_command_has_no_tokens(tmp_path):
    """Yesterday's result is not today's denominator."""
    path = tmp_path / "tokens.json"
    path.write_text('{"n": 3}')
    found, reason = measure_tokens._tokens_in_file(path, "n", time.time_ns() + 1_000_000_000)
    assert found is None
    assert "older than the command" in reason


def test_tokens_in_the_programs_json(where):
    """--tokens-json FILE --tokens-key KEY, read when the command has ended."""
    options = [
        *SEVENTY_W,
        "--tokens-json",
        "tokens.json",
        "--tokens-key",
        "usage.completion_tokens",
    ]
    call(
        "sh",
        "-c",
        """sleep 0.3; echo '{"usage": {"completion_tokens": 50}}' >tokens.json""",
        options=options,
    )
    found = row()
    assert found["tokens_kept"] == 50
    assert found["energy_per_token_j"] == pytest.approx(found["energy_j"] / 50, rel=1e-9)
    assert found["valid"], found["reasons"]


def test_tokens_in_lines_of_the_output(where):
    """--tokens-json - counts in the output's JSON lines, and passes every byte on."""
    options = [*SEVENTY_W, "--tokens-json", "-", "--tokens-key", "n"]
    done = call(
        "sh", "-c", """echo start; echo '{"n": 3}'; sleep 0.2; printf '{"n": 4}'""", options=options
    )
    assert done.stdout == 'start\n{"n": 3}\n{"n": 4}'
    assert row()["tokens_kept"] == 7


def test_spans_and_file_that_disagree_do_not_count(where):
    """Two denominators for the same joules: the row is not valid until one is mended."""
    options = [*SEVENTY_W, "--tokens-json", "-", "--tokens-key", "n"]
    code = (
        "import wattflow, time\nwith wattflow.span('decode', tokens_out=5): time.sleep(0.2)\n"
        """print('{"n": 6}')"""
    )
    call(*python(code), options=options)
    assert "tokens_differ" in row()["reasons"]
    assert not row()["valid"]
