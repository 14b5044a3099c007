from rmsprop.kernels._cpu import RPROP_SCALARS as RPROP_SCALARS
from rmsprop.kernels._cpu import SCALARS as SCALARS
from rmsprop.kernels._cpu import launch as launch
from rmsprop.kernels._cpu import step as step
from rmsprop.kernels._cpu import supports_v3 as supports_v3
