"""How good and how varied a run's samples are: pure functions of samples, with their sources."""
