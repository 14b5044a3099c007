"""`python -m rmsprop` is the command `rmsprop`."""

from rmsprop.cli.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
