"""The verbs of publishing: `bundle` and `verify`."""

import json
import shutil
from pathlib import Path

from commands import call

BUNDLE = Path(__file__).parent.parent / "docs" / "bundles" / "llama-7b-h100.zip"


def test_a_shipped_bundle_is_verified(tmp_path):
    """Exit code 0, and JSON that says so."""
    done = call("verify", str(BUNDLE), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is True


def test_a_cut_bundle_is_refused_in_one_line(tmp_path):
    """Half a bundle is no bundle: a line on stderr, no traceback, exit code not 0."""
    cut = tmp_path / "cut.zip"
    shutil.copy(BUNDLE, cut)
    with cut.open("rb+") as file:
        file.truncate(BUNDLE.stat().st_size // 2)
    done = call("verify", str(cut), cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("wattflow: ")
    assert "Traceback" not in done.stderr
