"""The same lesion from visit to visit: registration of scans, matching of lesions, and what became of each."""
