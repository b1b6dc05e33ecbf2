"""Facts of each power source: spacing, lag, averaging."""

SECOND_NS = 1_000_000_000

BUFFER_GAP_NS = 100_000_000  # the driver's buffer has a sample each 20 ms, at most 45 ms apart
POLL_SLACK_NS = 100_000_000  # a poll may come this late on a busy node
# polled fields are renewed this often (seen on H100): two polls within it are one sample
RENEWAL_NS = dict.fromkeys(
    ("nvml_instant", "nvml_average", "nvml_usage", "nvml_usage_mean", "dcgm", "dcgm_mean"),
    100_000_000,
)
# means over 1 s
AVERAGING_NS = dict.fromkeys(("nvml_average", "nvml_usage_mean", "dcgm_mean"), SECOND_NS)
CACHED = ("dcgm", "dcgm_mean")  # a value was read up to a period before it came and was stamped
DCGM_COUNTER_AGE_NS = SECOND_NS  # the same for DCGM's counter, which is read this often


def longest_spacing_ns(source: str, period_ms: float) -> int:
    """The longest time between two samples of a source that is no gap yet, ns."""
    three_periods = int(3 * period_ms * 1e6)
    if source == "nvml_buffer":
        return max(BUFFER_GAP_NS, three_periods)
    return three_periods + POLL_SLACK_NS


def lag_ns(source: str, period_ms: float) -> int:
    """How far the time that a sample stands for may lie from its stamp, ns."""
    period_ns = int(period_ms * 1e6)
    least_ns = max(AVERAGING_NS.get(source, 0), RENEWAL_NS.get(source, 0))
    return period_ns + least_ns if source in CACHED else max(period_ns, least_ns)
