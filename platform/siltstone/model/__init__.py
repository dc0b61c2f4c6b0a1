"""Pure PyTorch: no files, no clock, no randomness but torch's own generators."""
