"""LeNet-5 on MNIST, beside published structured results."""
