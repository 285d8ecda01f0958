#!/usr/bin/env bash
#FLUX: --job-name=patch-java-app
#FLUX: --nodes=1
#FLUX: --time-limit=10m
#
# The same from a scheduler: submit it with `flux batch flux-batch.sh`, behind the job that made the fix
# (`--dependency=afterok:JOBID`). It needs oras-csi on the node, a docker config with the registry's credentials, and a
# kubeconfig whose user may get and patch the set. Slurm reads #SBATCH lines instead; the rest stays.
set -euo pipefail

base=${BASE:-kind-registry:5000/java-app:v1}
fix=${FIX:-kind-registry:5000/acme/config:v1}
patched=${PATCHED:-kind-registry:5000/java-app:fixed}
set=${SET:-java-app}

# Nothing is pushed where the set cannot be changed, and the set is not changed where nothing was pushed.
oras-csi patch "$base" --minor "$fix" --push "$patched" --set "$set" ${CERTS_DIR:+--certs-dir "$CERTS_DIR"}
