"""Entry point of `python -m experiments`."""

from experiments._command.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
