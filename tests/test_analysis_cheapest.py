"""The cheapest setting, from sweeps on disk whose joules are known by hand."""

import numpy as np
import pytest
from sweeps import Gpu, Made, choices, constant, make_attempt, make_sweep

from wattflow import open_sweep
from wattflow.analysis import cheapest as module
from wattflow.analysis.cheapest import cheapest
from wattflow.analysis.statistics import Value
from wattflow.collect.collect import collect
from wattflow.report.page import report

GAINS = {"a": 1.0, "b": 1.1, "c": 0.9}


def made(folder, watts_by_batch, source="nvml_buffer", **over):
    """A sweep of some batch sizes, a repeat on each of three boards; size 8 on boards of its own."""
    points = [
        (choices(batch_size=size, repeat=k), Gpu(f"GPU-{board}{size // 8}", constant(watts * gain)))
        for size, watts in watts_by_batch.items()
        for k, (board, gain) in enumerate(GAINS.items())
    ]
    return swept(folder, [(point, Made([gpu], source=source, **over)) for point, gpu in points])


def swept(folder, attempts):
    """A collected sweep of some points and how each was made; null: never."""
    sweep = make_sweep(folder / "s", [point for point, _ in attempts])
    for point, how in attempts:
        if how is not None:
            make_attempt(sweep, point, how)
    collect(sweep)
    return open_sweep(sweep.path)


def opening(sweep):
    """The first section of the report as one line."""
    page = report(sweep).read_text()
    _, begins, rest = page.partition('<section id="cheapest" class="answer">')
    return " ".join(rest.partition("</section>")[0].split()) if begins else None


def test_the_lowest_mean_is_named_with_what_may_be_as_low(tmp_path):
    """300 W against 400 W on the same three boards is established; 301 W on three others is not."""
    sweep = made(tmp_path, {2: 400.0, 4: 300.0, 8: 301.0})
    (found,) = cheapest(sweep.points)
    assert (found.setting, found.settings, found.without) == ("batch_size 4", 3, 0)
    assert found.mean.mean == pytest.approx(595 / 200 * 300 / 70, rel=1e-3)
    assert found.not_established == ["batch_size 8"]
    text = opening(sweep)
    assert "<b>Cheapest: batch_size 4</b>" in text
    assert "It is not established against batch_size 8." in text


def test_simulated_joules_establish_nothing(tmp_path):
    """All other settings stand, the page says why, and marks the mean."""
    sweep = made(tmp_path, {2: 400.0, 4: 300.0}, source="simulated")
    assert cheapest(sweep.points)[0].not_established == ["batch_size 2"]
    text = opening(sweep)
    assert "These joules are simulated" in text
    assert (
        "~12.7 J/token (~9.58 to ~15.9), 25.0 % below the next, batch_size 2; the lowest of" in text
    )


def test_one_setting_is_no_cheapest(tmp_path):
    """Nothing to compare it with."""
    sweep = made(tmp_path, {2: 400.0})
    assert cheapest(sweep.points) == []
    assert opening(sweep) is None


def test_settings_as_cheap_as_each_other_are_not_established(tmp_path):
    """Equal joules to the last digit: one is named, since it stands first, and it is established against none."""
    sweep = made(tmp_path, {2: 300.0, 4: 300.0})
    (found,) = cheapest(sweep.points)
    assert (found.setting, found.not_established) == ("batch_size 2", ["batch_size 4"])
    assert "It is established against none of them." in opening(sweep)


def test_other_work_is_no_cheaper_way_to_the_same(tmp_path):
    """A small model of few joules a token is no setting of a large one; one with a setting alone is left out."""
    attempts = [
        (choices(model__name=model, batch_size=size), Made([Gpu("GPU-a", constant(watts))]))
        for model, base in (("small", 100.0), ("large", 400.0))
        for size, watts in ((2, base), (4, base + 90.0))
    ]
    attempts.append((choices(model__name="tiny"), Made([Gpu("GPU-a", constant(50.0))])))
    sweep = swept(tmp_path, attempts)
    found = {one.work: one.setting for one in cheapest(sweep.points)}
    assert found == {"model small": "batch_size 2", "model large": "batch_size 2"}
    text = opening(sweep)
    assert "<b>Cheapest for model large: batch_size 2</b>" in text
    assert "tokens of another model, dataset or length are another product" in text


@pytest.mark.parametrize("key", ["dataset__name", "max_gen_len", "weights", "stop", "temperature"])
def test_each_choice_of_what_is_asked_parts_the_work(key, tmp_path):
    """Two values with one setting each leave nothing to compare."""
    values = {"dataset__name": ("alpaca", "gsm8k"), "max_gen_len": (64, 512)}
    values |= {"weights": ("dummy", "meta"), "stop": ("length", "eos"), "temperature": (0.1, 0.9)}
    watts = (100.0, 400.0)
    sweep = swept(
        tmp_path,
        [
            (choices(**{key: value}), Made([Gpu("GPU-a", constant(w))]))
            for value, w in zip(values[key], watts, strict=True)
        ],
    )
    assert cheapest(sweep.points) == []


def test_settings_without_numbers_are_counted(tmp_path):
    """One failed and one never ran: the lowest of two, and two more have none. An infeasible point is no setting."""
    attempts = [
        (choices(batch_size=size), Made([Gpu("GPU-a", constant(watts))]))
        for size, watts in ((2, 400.0), (4, 300.0))
    ]
    attempts += [
        (choices(batch_size=8), Made([Gpu("GPU-a")], status="failed")),
        (choices(batch_size=16), None),
    ]
    sweep = swept(tmp_path, attempts)
    (found,) = cheapest(sweep.points)
    assert (found.settings, found.without) == (2, 2)
    assert "the lowest of 2 settings with numbers; 2 more have none." in opening(sweep)


def test_joules_of_several_kinds_have_no_cheapest_and_the_page_says_why(tmp_path):
    """The GPU's of one setting beside the host's of another."""
    sweep = swept(
        tmp_path,
        [
            (choices(batch_size=2), Made([Gpu("GPU-a")])),
            (choices(batch_size=4), Made([Gpu("host-n")], source="rapl", boundary="host")),
        ],
    )
    (found,) = cheapest(sweep.points)
    assert (found.setting, found.mean) == (None, None)
    assert "No cheapest setting</b>: their joules are of several kinds (gpu; host)" in opening(
        sweep
    )


def test_another_sensor_may_make_the_difference(tmp_path):
    """200 against 400 W, on the same three boards, but by two sensors: it is not established."""
    attempts = [
        (
            choices(batch_size=size, repeat=k),
            Made([Gpu(f"GPU-{board}", constant(watts * gain))], source=source),
        )
        for size, watts, source in ((2, 400.0, "nvml_buffer"), (4, 200.0, "nvml_instant"))
        for k, (board, gain) in enumerate(GAINS.items())
    ]
    (found,) = cheapest(swept(tmp_path, attempts).points)
    assert (found.setting, found.not_established) == ("batch_size 4", ["batch_size 2"])


def test_the_opening_is_held_to_the_results(tmp_path):
    """`verify` of a sweep finds a report whose first sentence somebody changed."""
    from wattflow.publish.verify import verify

    sweep = made(tmp_path, {2: 400.0, 4: 300.0})
    page = report(sweep)
    assert verify(sweep.directory.path).verified
    page.write_text(page.read_text().replace("batch_size 4</b>", "batch_size 2</b>"))
    found = verify(sweep.directory.path)
    assert not found.verified
    assert any("cheapest" in problem for problem in found.problems)


def test_the_lowest_of_many_equal_settings_is_rarely_established():
    """Twelve settings that truly cost the same: at most 5 % of such sweeps say something false, though it is chosen."""
    rng = np.random.default_rng(7)
    false = 0
    for _ in range(200):
        arms = [
            [Value(float(v), 0.0, ("b",), np.inf) for v in rng.normal(100.0, 1.0, 10)]
            for _ in range(12)
        ]
        arms.sort(key=lambda arm: np.mean([one.value for one in arm]))
        false += any(module._lower(arms[0], arms[1:]))
    assert false <= 17  # of 200, as 5 % come to with a probability of 99 %
