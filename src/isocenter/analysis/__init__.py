"""What masks mean: measurements now, and the study of lesions over time."""
