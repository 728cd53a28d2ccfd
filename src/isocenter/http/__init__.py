"""One thin adapter a wire protocol. The only layer that imports FastAPI."""
