"""One patient's visits, step by step: how they are measured, brought onto each other, described, and kept in files."""
