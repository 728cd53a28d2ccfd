"""Jobs that survive: a table that is the truth, workers that take from it, and a bell that only wakes them."""
