"""What experiments are configured with: data, networks, papers."""
