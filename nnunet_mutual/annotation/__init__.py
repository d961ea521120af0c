"""The table: who drew what, what may truly be at a voxel, groups of labels and of modalities."""
