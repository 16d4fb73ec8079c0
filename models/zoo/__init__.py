"""CIFAR-style VGG, ResNet and WRN, torchvision classifiers and the user's own networks, by name."""
