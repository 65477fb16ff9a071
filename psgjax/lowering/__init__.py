"""What a backend runs fast; each file names the plain form that it equals."""
