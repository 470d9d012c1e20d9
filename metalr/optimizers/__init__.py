"""What is done to an optimizer before it is unrolled."""
