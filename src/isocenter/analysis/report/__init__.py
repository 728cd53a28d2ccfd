"""A case as people read it: an HTML page that stands alone, and tables for other programs."""
