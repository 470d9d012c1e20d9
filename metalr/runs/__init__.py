"""What is unrolled."""
