"""Search of similar inputs by the features of a pre-trained model."""
