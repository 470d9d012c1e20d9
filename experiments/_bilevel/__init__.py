"""Parts of the experiments on bilevel problems."""
