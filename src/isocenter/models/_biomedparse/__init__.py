"""BiomedParse v2: its own repository's code in a process of its own, and what goes in and comes out."""
