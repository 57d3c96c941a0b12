"""`python -m studio`: the command line without its console script."""

from studio.cli import main

if __name__ == "__main__":
    main()
