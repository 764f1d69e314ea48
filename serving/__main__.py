"""`python -m amlr.serving`: the same as `amlr-serve`."""

from amlr.serving.cli import main

if __name__ == "__main__":
    main()
