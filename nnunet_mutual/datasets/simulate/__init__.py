"""Hides labels, parts of them, label maps or channels of a labelled dataset."""
