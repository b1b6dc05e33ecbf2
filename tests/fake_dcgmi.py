"""A dcgmi on the PATH that plays files of tests/data/dcgm at the rate that it is asked for.

Run as a script it is the command. Its behaviour is told in the environment:

    FAKE_DCGMI          the folder of the files; each call adds a line "pid arguments" to its calls.log
    FAKE_DCGMI_DOWN     no host engine answers
    FAKE_DCGMI_REFUSE   field ids that this DCGM does not know or does not permit
    FAKE_DCGMI_ONCE     dmon ends at the end of its file instead of starting anew
    FAKE_DCGMI_HANGS    dmon says nothing more after the end of its file
"""

import os
import shutil
import sys
import time
from pathlib import Path

DATA = Path(__file__).parent / "data" / "dcgm"
SHORT_NAMES = {
    100: "SMCLK",
    101: "MMCLK",
    112: "DVCCTR",
    150: "TMPTR",
    155: "POWER",
    156: "TOTEC",
    157: "POWINST",
    164: "EPLMT",
    203: "GPUTL",
    204: "MCUTL",
    252: "FBUSD",
    1001: "GRACT",
    1002: "SMACT",
    1003: "SMOCC",
    1004: "TENSO",
    1005: "DRAMA",
    1009: "PCITX",
    1010: "PCIRX",
    1011: "NVLTX",
    1012: "NVLRX",
}


def install(folder, monkeypatch):
    """Put the command first on the PATH; returns the folder of its files, a copy that a test may change."""
    played = folder / "dcgm"
    shutil.copytree(DATA, played)
    commands = folder / "bin"
    commands.mkdir()
    command = commands / "dcgmi"
    command.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -I -S "{Path(__file__).resolve()}" "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("FAKE_DCGMI", str(played))
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return played


def calls(played):
    """The pid and arguments of each call so far."""
    lines = (played / "calls.log").read_text().splitlines()
    return [(int(pid), arguments) for pid, arguments in (line.split(" ", 1) for line in lines)]


def ticks(lines):
    """The lines of a file as lists that are printed at once: a tick ends before a GPU that it has already."""
    tick, seen = [], set()
    for line in lines:
        entity = tuple(line.split()[:2])
        if line.startswith("GPU ") and entity in seen:
            yield tick
            tick, seen = [], set()
        seen.add(entity)
        tick.append(line)
    yield tick


def dmon(played, options):
    names = [SHORT_NAMES[int(field)] for field in options["-e"].split(",")]
    for path in sorted(played.glob("*.txt")):
        lines = path.read_text().splitlines(keepends=True)
        if lines[0].split() == ["#Entity", *names]:
            break
    else:
        print("Error: no such recording")
        return 1
    count = int(options.get("-c", 0))
    printed = 0
    while True:
        for tick in ticks(lines):
            sys.stdout.write("".join(tick))
            sys.stdout.flush()
            printed += 1
            if printed == count:
                return 0
            time.sleep(int(options["-d"]) / 1000)
        if os.environ.get("FAKE_DCGMI_HANGS"):
            time.sleep(600)
        if os.environ.get("FAKE_DCGMI_ONCE"):
            print("Error: the host engine went away")
            return 1


def main(arguments):
    played = Path(os.environ["FAKE_DCGMI"])
    with (played / "calls.log").open("a") as file:
        file.write(f"{os.getpid()} {' '.join(arguments)}\n")
    if arguments == ["--version"]:
        print("\ndcgmi  version: 4.6.0")
        return 0
    if os.environ.get("FAKE_DCGMI_DOWN"):
        print((played / "discovery-down.txt").read_text(), end="")
        return 255
    if arguments == ["discovery", "-l"]:
        print((played / "discovery.txt").read_text(), end="")
        return 0
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    refused = set(os.environ.get("FAKE_DCGMI_REFUSE", "").split(",")) & set(
        options["-e"].split(",")
    )
    if refused:
        print(
            f"Error setting watches. Result: -6: Field {min(refused)} is not supported",
            file=sys.stderr,
        )
        return 250
    return dmon(played, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
