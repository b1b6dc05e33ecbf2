"""Run the command line by `python -m wattflow.cli`."""

from wattflow.cli.app import main

if __name__ == "__main__":
    main()
