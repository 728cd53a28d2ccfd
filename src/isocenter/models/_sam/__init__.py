"""What the SAM family shares: pictures of slices, frames, folders, cached features, sessions, conversion of checkpoints."""
