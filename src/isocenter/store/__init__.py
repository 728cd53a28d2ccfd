"""What is kept: decoded volumes, result files."""
