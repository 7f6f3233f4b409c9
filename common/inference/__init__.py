"""Use of a trained model on images of one's own."""
