"""Parts of ``step.py``: the dataset, the trainers in the middle of an epoch, what is counted and what is timed."""
