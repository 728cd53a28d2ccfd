"""`python -m isocenter`: the same as the command `isocenter`."""

from isocenter.cli import main

main()
