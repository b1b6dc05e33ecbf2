"""Progress of a followed sweep."""

from wattflow.cli.follow import Follower


def test_without_a_terminal_each_change_is_a_line(capsys):
    """Three looks, of which two show the same counts, print two lines on stderr and nothing on stdout."""
    with Follower() as follower:
        follower.show({"waiting": 2}, "")
        follower.show({"waiting": 2}, "load")
        follower.show({"running": 1, "waiting": 1}, "load")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "2 waiting\n1 running, 1 waiting\n"
