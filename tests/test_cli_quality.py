"""The verb that shows right answers beside joules."""

import contextlib
import json

from test_analysis_quality import answered

from wattflow.cli.app import main


def run(monkeypatch, capsys, *words):
    """What the verb prints."""
    monkeypatch.setattr("sys.argv", ["wattflow", "quality", *words])
    with contextlib.suppress(SystemExit):
        main()
    return capsys.readouterr().out


def test_shares_and_joules_with_their_intervals(tmp_path, monkeypatch, capsys):
    """Four of eight right, 850 J: 212 J each, and the same as JSON."""

    def texts(answers):
        return [f"#### {answer}" if i % 2 else "?" for i, answer in enumerate(answers)]

    path = str(answered(tmp_path, texts).directory.path)
    head, row = run(monkeypatch, capsys, path).splitlines()
    cells = dict(zip(head.split("\t"), row.split("\t"), strict=True))
    assert (cells["right"], cells["of"], cells["share"]) == ("4", "8", "0.500")
    assert cells["J a right answer"] in ("212", "213")
    (one,) = json.loads(run(monkeypatch, capsys, path, "--json"))
    assert (one["right"], one["answers"], one["tries"], one["reason"]) == (4, 8, 1, None)
