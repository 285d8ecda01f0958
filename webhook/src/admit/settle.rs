//! The order in which volumes are settled: sets, policy on names, credentials, patches, digests, policy on contents,
//! seals.

use std::sync::Arc;

use super::Admission;
use super::revision::Fixed;
use super::volumes::{Case, Credentials, Settled};
use crate::denial::{At, Code, Denial};
use crate::intent::{Content, VolumeIntent};
use crate::policy::evaluate::Findings;

/// How often another pod of the revision may come first: once a tag that is looked up.
const MOST_ROUNDS: usize = 3;

impl Admission {
    /// Policy on names, credentials, patches, policy on what they name, digests, policy on contents, seals: in this
    /// order.
    pub(super) async fn settle(
        &self,
        volumes: Vec<Arc<VolumeIntent>>,
        case: &Case<'_>,
    ) -> Result<Settled, Denial> {
        let volumes = self.look_up(volumes, case.namespace, case.holder, case.deadline).await?;
        let looked_up = self.claim_names(volumes, case).await?;
        for _ in 0..MOST_ROUNDS {
            let volumes = self.find_kept(looked_up.clone(), case).await?;
            if let Some(settled) = self.settle_known(volumes, case).await? {
                return Ok(settled);
            }
        }
        Err(unsettled())
    }

    /// The same, for volumes whose sets are known; `None` where another pod of the revision has had something else of a
    /// set meanwhile.
    async fn settle_known(
        &self,
        volumes: Vec<Arc<VolumeIntent>>,
        case: &Case<'_>,
    ) -> Result<Option<Settled>, Denial> {
        let mut findings = Findings::default();
        let book = self.policies.applicable_to(case.namespace, case.deadline).await?;
        for named in volumes.iter().flat_map(|volume| volume.names()) {
            findings.check_name(&book, &named, &self.metrics)?;
        }
        tracing::debug!(namespace = case.namespace, volumes = volumes.len(), "intent is allowed");
        // A cluster set's bytes are whose pods may use it, whatever the pods' own Secrets.
        let of_pod = || volumes.iter().filter(|volume| !volume.is_of_cluster_set());
        let pod = case.pod.filter(|_| of_pod().next().is_some());
        let named_secrets = of_pod().filter_map(|volume| volume.secret.as_deref());
        let purse = self.credentials.read(pod, case.namespace, named_secrets, case.deadline).await;
        let mut keyrings = Vec::new();
        for volume in &volumes {
            keyrings.push(match &volume.content {
                Content::OfSet(of) if of.found.is_cluster_set() => {
                    self.keyring_of_set(of, &book, case.deadline).await?
                }
                _ => purse.keyring(volume.secret_at(), volume.secret.as_deref())?,
            });
        }
        let problems = purse.problems();
        let credentials = Credentials { keyrings: &keyrings, problems: problems.as_deref() };
        let mut fixed = Fixed::new();
        self.find_pins(&volumes, &mut fixed, case).await?;
        for _ in 0..MOST_ROUNDS {
            let mut findings = findings.clone();
            let volumes =
                self.expand(volumes.clone(), &credentials, (&book, &mut findings), &mut fixed, case).await?;
            let mut settled = self.round(&volumes, &credentials, &book, &fixed, case, findings).await?;
            if let Some(revision) = case.revision {
                let fresh = settled.volumes.iter().flat_map(|pinned| pinned.fresh.iter().cloned());
                let others = revision.keep(&fresh.collect::<Vec<_>>()).await?;
                if !others.is_empty() {
                    // Another pod of the revision came first: what it has is what counts.
                    fixed.extend(others);
                    continue;
                }
            }
            if !self.keep_sets(&settled.volumes, case).await? {
                return Ok(None);
            }
            self.make_sets(&settled.volumes, case).await?;
            for pinned in &mut settled.volumes {
                let at = At::Volume(&pinned.intent.name);
                pinned.canonical = self.sealer.seal(at, pinned.canonical.clone(), case.holder)?;
            }
            return Ok(Some(settled));
        }
        Err(unsettled())
    }
}

fn unsettled() -> Denial {
    let (rule, instead) = ("have tags whose pins change while they are looked at", "try again");
    Denial::new(Code::Unavailable, At::Field("spec.volumes"), None, rule, instead)
}
