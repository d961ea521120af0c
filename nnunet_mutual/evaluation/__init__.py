"""`nnunet_mutual evaluate`: overlap, surfaces and volumes of segmentations, only where a label is annotated."""
