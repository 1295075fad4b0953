"""``python -m embed_cli`` and ``torchrun -m embed_cli``: the same as ``embed``."""

from embed_cli.main import main

if __name__ == "__main__":
    main()
