"""``python -m ponyswarm``: the same as the ``ponyswarm`` command."""

from ponyswarm.cli import main

if __name__ == "__main__":
    main(prog_name="ponyswarm")
