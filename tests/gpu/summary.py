"""The rows of measured.py's JSON (on stdin) as a short table: what a person wants to see at the end of a run."""

import json
import sys

COLUMNS = (
    ("tokens_per_s", "tok/s", ".1f"),
    ("power_w", "W", ".1f"),
    ("energy_per_token_j", "J/token", ".4f"),
    ("energy_per_response_j", "J/response", ".2f"),
    ("counter_ratio", "integral/counter", ".4f"),
    ("coverage", "coverage", ".4f"),
    ("duration_s", "s", ".1f"),
    ("load_s", "load s", ".1f"),
)


def main() -> None:
    """Print one line an attempt."""
    told = json.load(sys.stdin)
    for name, rows in told["sweeps"].items():
        for row in rows:
            numbers = [
                f"{label} {row[key]:{form}}" for key, label, form in COLUMNS if row[key] is not None
            ]
            about = f"{row['model']} shards {row['shards']} repeat {row['repeat']} attempt {row['attempt']}"
            why = "" if row["error"] is None else f" ({row['error']})"
            print(f"{name}: {about}: {row['status']}{why}, valid {row['valid']} {row['reasons']}")
            if numbers:
                print("   ", ", ".join(numbers))


if __name__ == "__main__":
    main()
