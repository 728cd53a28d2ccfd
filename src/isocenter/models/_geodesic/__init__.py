"""How the click engine `isocenter.models.geodesic` works; nothing here is meant for other parts of the program."""
