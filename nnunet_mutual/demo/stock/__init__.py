"""The folder that the demo names in ``nnUNet_extTrainer`` so that nnU-Net finds the trainer it is compared with."""
