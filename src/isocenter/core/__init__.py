"""The types that everything else is built from; imports nothing of Isocenter above it."""
