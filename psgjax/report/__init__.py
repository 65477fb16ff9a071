"""What runs left, read and drawn: statistics, figures, one page."""
