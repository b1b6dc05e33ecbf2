"""`python -m wattflow.cli`."""

from wattflow.cli import main

if __name__ == "__main__":
    main()
