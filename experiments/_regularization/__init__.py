"""Parts of the experiment on regularization strengths."""
