"""The verb `doctor`."""

import json

from commands import call


def test_doctor_finds_the_configs_and_the_spool(tmp_path):
    """On any machine: JSON of checks with a status, the conf/ that is used among them."""
    done = call("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    findings = {one["check"]: one for one in json.loads(done.stdout)}
    assert findings["conf/"]["status"] == "ok"
    assert {one["status"] for one in findings.values()} <= {"ok", "missing", "note"}
    assert "GiB free" in findings["spool folder"]["detail"]
