"""Raw datasets: who annotated what (annotate), whether the files agree (check, sync), and folds (splits)."""
