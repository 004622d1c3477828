"""Mining hard negatives: the texts to choose from, the rankers, the models and their caches."""
