"""Patients on record: their visits, people's corrections, what is computed and told of them, and who did what."""
