"""Entry point of `python -m experiments`."""

from experiments._command.cli import main
from experiments._command.interrupt import entry

if __name__ == "__main__":
    entry(main)
