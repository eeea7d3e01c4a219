#!/usr/bin/env bash
# Trains under Open MPI 4 or 5: a process a slot of the hostfile, process 0 on its first host.
#
#     bash launch/cluster/openmpi.sh HOSTFILE RUN_FOLDER --preset atis-lstm --data-path ATIS
#
# All hosts must see the checkout and RUN_FOLDER, at the same place; what follows are flags of
# launch.train. PORT, 8476 unless set, must be free on the first host. Run again, it goes on in the
# same folder.
#
# Under Open MPI 4, `mpirun python -m launch.train` does too: JAX recognises its processes, though
# not those of Open MPI 5. Here each is told what it is, and who is missing is named.
set -euo pipefail

hosts=${1:?expected a hostfile}
folder=${2:?expected the folder of the run}
shift 2
first=$(awk '!/^[[:space:]]*(#|$)/ { print $1; exit }' "$hosts")

# Seconds that Open MPI 4, and 5, waits before it passes Ctrl-C on, as SIGTERM; and as long again, in
# which the job saves a checkpoint, before it kills.
export OMPI_MCA_odls_base_sigkill_timeout=20 PRTE_MCA_odls_base_sigkill_timeout=20

# shellcheck disable=SC2016 # The variables are those of each process.
exec mpirun --hostfile "$hosts" --bind-to none \
  bash -c 'exec "$@" --num-processes "$OMPI_COMM_WORLD_SIZE" --process-id "$OMPI_COMM_WORLD_RANK"' \
  process "${PYTHON:-python}" -m launch.train --coordinator "${first#*@}:${PORT:-8476}" \
  --output-dir "$folder" --auto-resume "$@"
