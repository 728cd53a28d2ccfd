"""`python -m isocenter.cli`: the same as `isocenter`, for when the script is not on the path."""

from isocenter.cli import main

main()
