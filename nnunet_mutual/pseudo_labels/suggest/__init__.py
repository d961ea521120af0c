"""Where to draw next: which labels of which cases would teach most for a minute of a reader."""
