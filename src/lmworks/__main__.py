"""`python -m lmworks` is `lmworks`."""

from lmworks.cli.main import main

if __name__ == "__main__":
    main()
