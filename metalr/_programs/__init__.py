"""Reading traced programs."""
