"""Run the command line as `python -m swcompile.cli`, where the script `swcompile` is not on the path."""

from swcompile.cli import main

if __name__ == "__main__":
    main()
