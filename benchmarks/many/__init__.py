"""Parts of ``scale.py``: datasets of many cases, and commands that are watched."""
