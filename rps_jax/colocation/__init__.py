"""The case study of section 7 of the paper: colocation of training with a web service.

Packets of a web service and of a training job share the links of one switch. `simulate` takes
`Settings` and gives a `Result`; `validation` holds it to queueing theory.

It needs numba, which the rest of the library does not: import it by itself.
"""

try:
    import numba as _numba  # noqa: F401
except ModuleNotFoundError:
    raise ImportError(
        'rps_jax.colocation needs numba, found none: pip install numba, or the extra "colocation"'
    ) from None

from rps_jax.colocation import closed_forms as closed_forms
from rps_jax.colocation import validation as validation
from rps_jax.colocation.record import save_record as save_record
from rps_jax.colocation.settings import PARAMS as PARAMS
from rps_jax.colocation.settings import SettingError as SettingError
from rps_jax.colocation.settings import Settings as Settings
from rps_jax.colocation.settings import with_discipline as with_discipline
from rps_jax.colocation.simulation import Result as Result
from rps_jax.colocation.simulation import simulate as simulate
