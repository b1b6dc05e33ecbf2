"""Run the command line by `python -m wattflow`."""

from wattflow.cli.app import main

if __name__ == "__main__":
    main()
