"""ResNet-56 on all of CIFAR-10, on a GPU."""
