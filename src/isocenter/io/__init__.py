"""Bytes from outside in, standard formats out. The only layer that opens what a client sent."""
