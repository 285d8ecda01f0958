#!/usr/bin/env bash
#FLUX: --job-name=patch-java-app
#FLUX: --nodes=1
#FLUX: --time-limit=10m
#
# The same as patch-job.yaml from a batch scheduler: submit it with `flux batch flux-batch.sh`, after the job that made the fix
# (`--dependency=afterok:JOBID`). It needs oras-csi on the node, a docker config with credentials for the registry, and a
# kubeconfig whose user can get and patch the set. Slurm reads #SBATCH lines instead; the rest is the same.
set -euo pipefail

base=${BASE:-kind-registry:5000/java-app:v1}
fix=${FIX:-kind-registry:5000/acme/config:v1}
patched=${PATCHED:-kind-registry:5000/java-app:fixed}
set=${SET:-java-app}

# The command pushes nothing if the set cannot be changed, and does not change the set if the push failed.
oras-csi patch "$base" --minor "$fix" --push "$patched" --set "$set" ${CERTS_DIR:+--certs-dir "$CERTS_DIR"}
