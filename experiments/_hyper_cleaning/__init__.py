"""Parts of the hyper-cleaning experiment."""
