"""`python -m fgrl.cli`: the same as the `fgrl` command."""

from fgrl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
