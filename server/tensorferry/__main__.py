"""``python -m tensorferry``."""

from tensorferry.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
