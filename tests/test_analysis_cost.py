"""Price, carbon and the break-even of the host, against numbers worked out by hand."""

import pytest

from wattflow.analysis import caps
from wattflow.analysis.cost import Factor, Factors, Spent, Used, bill, break_even_host_w, table

HOUR_NS = 3_600_000_000_000


def test_a_kilowatt_hour():
    """36 MJ are 10 kWh; at a PUE of 1.5 and 0.25 EUR they cost 3.75 EUR, at 400 g they are 6,000 g."""
    factors = Factors(
        price=Factor("tariff", (0.25,)),
        currency="EUR",
        carbon=Factor("grid", (400.0,)),
        pue=1.5,
        pue_source="meters",
    )
    told = bill(Used(36e6, 3.6, None, None), factors)
    assert (told.energy_kwh, told.facility_energy_kwh) == (10.0, 15.0)
    assert (told.price, told.carbon_g) == (3.75, 6000.0)
    # 3.6 J a token are 1 kWh a million, 1.5 at the facility
    assert told.price_per_million_tokens == pytest.approx(0.375)
    assert told.carbon_g_per_million_tokens == pytest.approx(600.0)
    assert (told.price_source, told.carbon_source, told.why_not) == (
        "tariff",
        "grid",
        None,
    )


def test_nothing_is_assumed():
    """Without factors there are kWh and no price, carbon or facility's energy; without joules not even kWh."""
    told = bill(Used(3.6e6, None, 0, HOUR_NS), Factors())
    assert told.energy_kwh == 1.0
    assert all(
        getattr(told, name) is None for name in ("price", "carbon_g", "facility_energy_kwh", "pue")
    )
    none = bill(Used(None, None, 0, HOUR_NS), Factors(price=Factor("tariff", (1.0,))))
    assert (none.price, none.why_not) == (None, "no joules are known")


def test_a_factor_over_time_is_weighted_by_time():
    """100 g for an hour and 200 g for the next: from 0:30 to 1:15 it is (30 x 100 + 15 x 200) / 45 = 133.3 g."""
    factor = table(
        "time,zone,g_per_kwh\n1970-01-01T00:00:00Z,x,100\n1970-01-01T02:00:00+01:00,x,200\n",
        "g_per_kwh",
        "grid",
    )
    assert factor.mean(HOUR_NS // 2, HOUR_NS * 5 // 4) == pytest.approx(400 / 3)
    assert factor.mean(0, 2 * HOUR_NS) == 150.0


def test_a_factor_holds_for_an_hour_at_most():
    """A value of 1:00 says nothing of 2:01, be it the last or followed by one of 3:00; before the first is none."""
    factor = Factor("grid", (100.0, 300.0), (HOUR_NS, 3 * HOUR_NS))
    assert factor.mean(HOUR_NS, 2 * HOUR_NS) == 100.0
    assert factor.mean(HOUR_NS, 2 * HOUR_NS + 60_000_000_000) is None
    assert factor.mean(3 * HOUR_NS, 5 * HOUR_NS) is None
    assert factor.mean(0, HOUR_NS // 2) is None


def test_a_table_of_quarters_of_an_hour():
    """Four values an hour are taken as they stand: 1, 2, 3, 4 make 2.5."""
    quarter = HOUR_NS // 4
    factor = Factor("spot", (1.0, 2.0, 3.0, 4.0), tuple(i * quarter for i in range(4)))
    assert factor.mean(0, HOUR_NS) == 2.5


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1: no column g_per_kwh, time"),
        ("time,price\n", "line 1: no column g_per_kwh"),
        ("time,g_per_kwh\n", "no line below the header"),
        ("time,g_per_kwh\n2026-01-01T00:00:00,1\n", "line 2: .* has no offset from UTC"),
        ("time,g_per_kwh\nnoon,1\n", "line 2"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,many\n", "line 2"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,nan\n", "line 2: nan is no number"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z\n", "line 2"),
        (
            "time,g_per_kwh\n2026-01-01T01:00:00Z,1\n2026-01-01T01:00:00Z,2\n",
            "line 3: .* is not after",
        ),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,0,25\n", "line 2: 3 columns where the header has 2"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,1,234.5\n", "line 2: 3 columns"),
        (
            "time,zone,g_per_kwh\n2026-01-01T00:00:00Z,25\n",
            "line 2: 2 columns where the header has 3",
        ),
        ('time,g_per_kwh\n2026-01-01T00:00:00Z,"0,25"\n', "line 2: 0,25 is no number"),
        ('time,g_per_kwh\n2026-01-01T00:00:00Z,"1,234.5"\n', "line 2: 1,234.5 is no number"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,1_0\n", "line 2: 1_0 is no number"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,0x10\n", "line 2: 0x10 is no number"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,\u0661\n", "line 2: \u0661 is no number"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,inf\n", "line 2: inf is no number"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,\n", "line 2:  is no number"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,-5\n", "line 2: -5 is not between 0 and 10000"),
        ("time,g_per_kwh\n2026-01-01T00:00:00Z,400000\n", "line 2: 400000 is not between"),
        ("time,g_per_kwh\n9999-12-31T00:00:00Z,1\n", "line 2: .* is not between 1970 and 2200"),
        ("time,g_per_kwh\n0001-01-01T00:00:00+14:00,1\n", "line 2: .* is not between 1970"),
        ("time,g_per_kwh,g_per_kwh\n2026-01-01T00:00:00Z,1,9\n", "more than one column g_per_kwh"),
        ("time;g_per_kwh\n2026-01-01T00:00:00Z;0,25\n", "not by ';'"),
    ],
)
def test_a_table_that_is_none(text, why):
    """A column that is missing, a time without an offset, a value that is no number: the line is named."""
    with pytest.raises(ValueError, match=why):
        table(text, "g_per_kwh", "grid")


@pytest.mark.parametrize(
    "text",
    [
        "\ufefftime,price_per_kwh\n1970-01-01T00:00:00Z,0.25\n",
        "time,price_per_kwh\r\n1970-01-01T00:00:00Z,0.25\r\n",
        "time,price_per_kwh\r1970-01-01T00:00:00Z,0.25\r",
        "zone, time, price_per_kwh\nDE, 1970-01-01T00:00:00Z, 0.25\n\n",
        '"time","price_per_kwh"\n"1970-01-01T01:00:00+01:00","2.5e-1"\n',
    ],
)
def test_a_table_as_spreadsheets_write_it(text):
    """A mark at the start, line ends of other systems, spaces and quotes change no price."""
    factor = table(text, "price_per_kwh", "tariff")
    assert (factor.values, factor.starts_ns) == ((0.25,), (0,))


def test_a_price_below_0_and_the_hour_that_comes_twice():
    """A price may be below 0; where summer time ends, two hours have one name and two offsets."""
    factor = table(
        "time,price_per_kwh\n2026-10-25T02:00:00+02:00,-0.05\n2026-10-25T02:00:00+01:00,0.15\n",
        "price_per_kwh",
        "spot",
    )
    start_ns = factor.starts_ns[0]
    assert factor.starts_ns[1] - start_ns == HOUR_NS
    assert factor.mean(start_ns, start_ns + 2 * HOUR_NS) == pytest.approx(0.05)


def test_break_even():
    """1 J in 10 ms against 1.5 J in 5 ms: 0.5 J / 5 ms = 100 W, where both cost 2 J; the same the other way round."""
    slow, fast = Spent(1.0, 0.010), Spent(1.5, 0.005)
    host_w, why_not = break_even_host_w(slow, fast)
    assert host_w == pytest.approx(100.0)
    assert why_not is None
    assert slow.energy_j + host_w * slow.time_s == pytest.approx(2.0)
    assert fast.energy_j + host_w * fast.time_s == pytest.approx(2.0)
    assert break_even_host_w(fast, slow)[0] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("setting", "reference", "why"),
    [
        (Spent(1.0, 1.0), Spent(2.0, 2.0), "the cheaper one is also faster"),
        (Spent(2.0, 2.0), Spent(1.0, 1.0), "the cheaper one is also faster"),
        (Spent(1.0, 2.0), Spent(1.0, 1.0), "both take the same energy"),
        (Spent(1.0, 2.0), Spent(2.0, 2.0), "both take the same time"),
    ],
)
def test_no_break_even(setting, reference, why):
    """Where one setting is cheaper and faster no host changes that, and the reason stands in its place."""
    assert break_even_host_w(setting, reference) == (None, why)


def test_break_even_of_the_papers_cap():
    """Table III at 256 tokens: 175 W saves 21.82 % of 180 kJ and takes 6.23 % more than 200 s: 39,276 J / 12.46 s."""
    base = caps.Run(200.0, 180_000.0, 1.0, 100.0, ("GPU-a",))
    capped = caps.Run(200.0 * 1.0623, 180_000.0 * 0.7818, 1.0, 94.0, ("GPU-a",))
    reference, row = caps.table({250: [base], 175: [capped]}, 250)
    assert row.break_even.host_w == pytest.approx(39_276 / 12.46)
    assert row.break_even.low_w is None  # one repeat each
    assert reference.break_even is None
