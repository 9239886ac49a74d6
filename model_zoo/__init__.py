"""Small networks and small data sets to compress, train and test with.

Networks are plain functions, registered under their own names:

    >>> import torch
    >>> from model_zoo import create_model, list_models
    >>> list_models("resnet*")
    ['resnet20', 'resnet56']
    >>> create_model("small_cnn", num_classes=3)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 3])

Data sets live in :mod:`model_zoo.datasets`, which is not imported from here.
"""

from model_zoo.cnn import cnn1d, lenet, lenet5, small_cnn
from model_zoo.minilm import minilm
from model_zoo.mlp import mlp
from model_zoo.mobilenet import mobilenet_small
from model_zoo.registry import create_model, list_models, register_model
from model_zoo.resnet import resnet20, resnet56
from model_zoo.transformer import text_transformer

__all__ = [
    "cnn1d",
    "create_model",
    "lenet",
    "lenet5",
    "list_models",
    "minilm",
    "mlp",
    "mobilenet_small",
    "register_model",
    "resnet20",
    "resnet56",
    "small_cnn",
    "text_transformer",
]
