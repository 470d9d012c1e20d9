"""What is done with a hypergradient: learning, online adaptation."""
