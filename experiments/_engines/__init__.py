"""The parts of `engines`: what is compared with what, and how."""
