"""nnU-Net v2: trained-model folders read with care and run tile by tile, with nnU-Net's own preprocessing and networks."""
