"""Train, evaluate and use one small convolutional network that tells cats from dogs. It works without search/."""
