"""The loop, and what is seen of a run while it trains."""
