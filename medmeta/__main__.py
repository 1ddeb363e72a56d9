"""``python -m medmeta`` and ``torchrun -m medmeta`` are the command line."""

from medmeta.cli import main

if __name__ == "__main__":
    main()
