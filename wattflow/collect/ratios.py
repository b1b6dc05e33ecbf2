"""The columns that are one column over another: formed of a row's sums, whether one attempt or several made them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from wattflow.nullable import quotient


class Ratio(NamedTuple):
    """One column that is a quotient of two others."""

    column: str
    numerator: str
    denominator: str
    check: str | None = (
        None  # the reason code of a row in which column x denominator is not the numerator
    )


RATIOS = (
    Ratio("tokens_per_s", "tokens_kept", "duration_s"),
    Ratio("words_per_s", "words", "duration_s"),
    Ratio("responses_per_s", "responses", "duration_s"),
    Ratio("power_w", "energy_j", "duration_s", "energy_power_time"),
    Ratio("power_u_w", "energy_u_j", "duration_s"),
    Ratio("power_expanded_u_w", "energy_expanded_u_j", "duration_s"),
    Ratio("host_power_w", "host_energy_j", "duration_s"),
    Ratio("node_power_w", "node_energy_j", "duration_s"),
    Ratio("energy_per_token_j", "energy_j", "tokens_kept", "energy_per_token"),
    Ratio("energy_per_token_u_j", "energy_u_j", "tokens_kept"),
    Ratio("energy_per_token_expanded_u_j", "energy_expanded_u_j", "tokens_kept"),
    Ratio("energy_per_computed_token_j", "energy_j", "computed_tokens"),
    Ratio("energy_per_computed_token_u_j", "energy_u_j", "computed_tokens"),
    Ratio("energy_per_computed_token_expanded_u_j", "energy_expanded_u_j", "computed_tokens"),
    Ratio("energy_per_word_j", "energy_j", "words"),
    Ratio("energy_per_word_u_j", "energy_u_j", "words"),
    Ratio("energy_per_word_expanded_u_j", "energy_expanded_u_j", "words"),
    Ratio("energy_per_response_j", "energy_j", "responses"),
    Ratio("energy_per_response_u_j", "energy_u_j", "responses"),
    Ratio("energy_per_response_expanded_u_j", "energy_expanded_u_j", "responses"),
    Ratio("counter_ratio", "energy_j", "counter_energy_j"),
    Ratio("steady_tokens_per_s", "steady_tokens_kept", "steady_s"),
    Ratio("steady_power_w", "steady_energy_j", "steady_s"),
    Ratio("steady_energy_per_token_j", "steady_energy_j", "steady_tokens_kept"),
    Ratio("steady_energy_per_token_u_j", "steady_energy_u_j", "steady_tokens_kept"),
    Ratio("full_tokens_per_s", "full_tokens_kept", "full_s"),
    Ratio("full_power_w", "full_energy_j", "full_s"),
    Ratio("full_energy_per_token_j", "full_energy_j", "full_tokens_kept"),
    Ratio("full_energy_per_token_u_j", "full_energy_u_j", "full_tokens_kept"),
    Ratio("goodput_per_s", "good_requests", "full_s"),
    Ratio("energy_per_good_request_j", "full_energy_j", "good_requests"),
    Ratio("energy_per_good_request_u_j", "full_energy_u_j", "good_requests"),
    Ratio("communication_share", "communication_s", "decode_s"),
)


def ratios(sums: Mapping[str, Any]) -> dict[str, float | None]:
    """Return all ratios of a row's other columns; null where a part is unknown or the denominator is 0."""
    return {
        ratio.column: quotient(sums[ratio.numerator], sums[ratio.denominator]) for ratio in RATIOS
    }
