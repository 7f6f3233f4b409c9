"""Who was in the training data? An attack on the final model, with and without privacy."""
