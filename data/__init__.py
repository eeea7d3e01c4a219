"""Data for the experiments: NumPy arrays in memory or mapped, and batches of them.

Each data set is a module with a `find` function: `digits.find()`, `cifar10.find(path)`,
`atis.find(path)`. It checks what can be checked in under a second and returns a `Source`, whose
`load()` returns a `Dataset`. From there, `partition` gives each worker its examples,
`stack_shards` gathers them, and `epoch_order` and `take` make batches of them on the device.
"""

from data import atis as atis
from data import cifar10 as cifar10
from data import digits as digits
from data.augment import random_crop_and_flip as random_crop_and_flip
from data.batching import epoch_order as epoch_order
from data.batching import stack_shards as stack_shards
from data.batching import take as take
from data.dataset import Dataset as Dataset
from data.dataset import Source as Source
from data.errors import DataError as DataError
from data.partition import partition as partition
from data.subset import subset as subset
