"""A case told in words, every number of which is one of its measurements."""
