"""Running text: tokenisers, corpora as shards of tokens, language models trained on them."""
