"""The parts of the scribble models: exact minimum cuts on voxel grids, densities of intensities, and how they meet."""
