"""Hides labels, label maps or channels of a labelled dataset."""
