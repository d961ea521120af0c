"""What a training step sees: streams of data, views, boxes, loaders."""
