"""Unlabelled images, soft labels and modality groups, through nnU-Net's own preprocessor."""
