"""nnInteractive: the library's own inference session behind the program's interactive seam."""
