"""The mathematics: objectives, spectral normalisation, the update, its state, its passes."""
