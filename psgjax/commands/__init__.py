"""The commands: one file a door, thin ones, to what Python can do as well; `line.py` has what they share."""
