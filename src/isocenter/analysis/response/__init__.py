"""Response to treatment by the published criteria; every rule names the section of the guideline that it comes from."""
