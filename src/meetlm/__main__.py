"""``python -m meetlm`` is the command ``meet``."""

from meetlm.cli import main

main()
