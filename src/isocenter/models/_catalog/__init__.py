"""The catalog of weights: its entries, and how they are found, fetched, converted and installed."""
