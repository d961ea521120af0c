"""Stock model folders of a training, their card, containers."""
