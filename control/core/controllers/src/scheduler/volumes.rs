//! What a pod's claims ask of its node, and pods whose node is chosen but whose claims are not bound yet.
//!
//! A claim that waits for its first consumer gets its volume when a node is chosen: a free one that can be used there is
//! set aside for it, or its class's provisioner is told the node. The pod keeps its place meanwhile, and is bound when
//! all of its claims are.

use super::needs::Term;
use crate::cache::Cache;
use crate::controllers::persistent_volume::claim::taken;
use crate::views::{Claim, LOCAL_DRIVER, Pod, SELECTED_NODE};
use crate::wish::Write;
use dhow_api::meta;
use dhow_state::Key;
use dhow_types::{Revision, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The name of the provisioner of classes whose volumes are made by hand.
const NOBODY: &str = "kubernetes.io/no-provisioner";
/// How long a pod keeps its place while its claims are bound, as upstream does.
const BINDING_MS: u64 = 600_000;

/// What a pod's claims ask of its node. Ordered, so that equal needs are found again.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VolumeNeeds {
    /// Of each bound volume, the terms of which a node must match one.
    pub(super) bound: Vec<Vec<Term>>,
    /// Claims that are to be bound where the pod goes.
    pub(super) wanting: Vec<Wanting>,
    /// Whether another pod has a claim that is for one pod at a time.
    pub(super) taken: bool,
}

/// A claim that is to be bound where its pod goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanting {
    pub(super) claim: Key,
    /// Free volumes that suit it, the smallest first, and where they can be used.
    pub(super) free: Vec<(String, Option<Vec<Term>>)>,
    /// What is to be made for it, if its class makes volumes.
    pub(super) made: Option<Made>,
}

/// A volume that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Made {
    /// The name that it will have.
    pub(super) name: String,
    pub(super) bytes: i64,
    /// Whether it will lie on the node's own disk.
    pub(super) local: bool,
    /// The only node where it can be, if it is being made already.
    pub(super) node: Option<String>,
}

/// What is to be done for one claim on the chosen node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// A free volume is set aside.
    Take(Key, String),
    /// One is made.
    Make(Key, Made),
}

/// What the pod's claims ask of its node, or why no node will do.
pub(super) fn wanted(cache: &Cache, binding: &Binding, pod: &Pod, in_use: InUse<'_>) -> Result<VolumeNeeds, String> {
    let mut needs = VolumeNeeds::default();
    for name in &pod.claims {
        let key = Key::new(crate::views::resource::CLAIMS, Arc::clone(&pod.object.key.namespace), name.as_str());
        let Some(claim) = cache.claim(&key) else {
            let awaited = "waiting for ephemeral volume controller to create the persistentvolumeclaim";
            return Err(if pod.brought.contains(name) {
                format!("{awaited} \"{name}\"")
            } else {
                format!("persistentvolumeclaim \"{name}\" not found")
            });
        };
        if claim.deleting() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if claim.phase == "Lost" {
            let volume = claim.volume.as_deref().unwrap_or_default();
            return Err(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            ));
        }
        needs.taken |= claim.is_for_one_pod() && in_use(&key);
        match claim.volume.as_deref().filter(|_| claim.bind_completed) {
            Some(volume) => {
                let Some(volume) = cache.volume(volume) else {
                    return Err(format!(
                        "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                    ));
                };
                needs.bound.extend(volume.affinity.clone());
            }
            None => needs.wanting.push(wanting(cache, binding, claim)?),
        }
    }
    Ok(needs)
}

/// Whether another pod uses a claim, or is about to.
pub(super) type InUse<'a> = &'a dyn Fn(&Key) -> bool;

fn wanting(cache: &Cache, binding: &Binding, claim: &Claim) -> Result<Wanting, String> {
    let class = cache.class(&claim.wanted.class).filter(|class| class.waits);
    let Some(class) = class.filter(|_| claim.volume.is_none()) else {
        return Err("pod has unbound immediate PersistentVolumeClaims".into());
    };
    let wanting = |free, made| Wanting { claim: claim.object.key.clone(), free, made };
    if let Some(volume) = cache.volumes_of(&claim.object.key).find(|volume| volume.is_of(claim)) {
        // It has one, and is about to say so.
        return Ok(wanting(vec![(volume.name().to_owned(), volume.affinity.clone())], None));
    }
    let suiting = cache.volumes().filter(|volume| volume.suits(claim) && !binding.chosen.contains_key(volume.name()));
    let mut free: Vec<_> = suiting.map(|volume| (volume.offered.bytes, volume.name(), &volume.affinity)).collect();
    free.sort_by_key(|(bytes, name, _)| (*bytes, *name));
    let made = (class.provisioner != NOBODY).then(|| Made {
        name: claim.volume_to_make(),
        bytes: claim.wanted.bytes,
        local: class.provisioner == LOCAL_DRIVER,
        node: claim.selected_node.clone(),
    });
    let free = free.into_iter().map(|(_, name, affinity)| (name.to_owned(), affinity.clone())).collect();
    Ok(wanting(free, made))
}

/// A pod whose node is chosen and whose claims are not bound.
#[derive(Debug)]
struct Pending {
    pod: Arc<Pod>,
    node: String,
    until: Time,
    choices: Vec<Choice>,
    /// Writes that have not been answered.
    writes: usize,
    /// What the answered ones have made: it must have come back before anything is told from what is seen.
    made: Vec<(Key, Revision)>,
}

/// How far a pod's claims are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All are bound.
    Done,
    /// Something is under way.
    Waits,
    /// It will not come to be on this node.
    Failed(String),
}

/// Pods whose claims are being bound.
#[derive(Debug, Default)]
pub(super) struct Binding {
    pods: BTreeMap<Key, Pending>,
    /// Volumes that were chosen for them, by name; of those that are to be made, also how large and where.
    chosen: BTreeMap<String, Option<(String, i64)>>,
}

impl Binding {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// How much of a node's disk is promised to volumes that are not there yet.
    pub(super) fn promised(&self, cache: &Cache, node: &str) -> i64 {
        let here = self.chosen.iter().filter(|(name, _)| cache.volume(name).is_none());
        here.filter_map(|(_, made)| made.as_ref().filter(|(at, _)| at == node)).map(|(_, bytes)| bytes).sum()
    }

    /// Begins to bind a pod's claims; gives the writes.
    pub(super) fn begin(
        &mut self,
        cache: &Cache,
        now: Time,
        pod: &Arc<Pod>,
        node: &str,
        choices: Vec<Choice>,
    ) -> Vec<Write> {
        let writes: Vec<Write> = choices.iter().filter_map(|choice| write(cache, choice, node)).collect();
        for choice in &choices {
            match choice {
                Choice::Take(_, volume) => self.chosen.insert(volume.clone(), None),
                Choice::Make(_, made) => {
                    let place = made.local.then(|| (node.to_owned(), made.bytes));
                    self.chosen.insert(made.name.clone(), place)
                }
            };
        }
        let (pod, node, until) = (Arc::clone(pod), node.to_owned(), now + BINDING_MS);
        let key = pod.object.key.clone();
        self.pods.insert(key, Pending { pod, node, until, choices, writes: writes.len(), made: Vec::new() });
        writes
    }

    /// Takes the answer to a write that `begin` gave; false if it was for nothing.
    pub(super) fn written(&mut self, pod: &Pod, target: Key, revision: Option<Revision>) {
        let pending = self.pods.get_mut(&pod.object.key).filter(|pending| pending.pod.uid() == pod.uid());
        if let Some(pending) = pending {
            pending.writes = pending.writes.saturating_sub(1);
            pending.made.extend(revision.map(|revision| (target, revision)));
        }
    }

    /// Whether this life of the pod is one of them.
    pub(super) fn has(&self, pod: &Pod) -> bool {
        self.pods.get(&pod.object.key).is_some_and(|pending| pending.pod.uid() == pod.uid())
    }

    /// A pod is bound, or its node was a wrong choice.
    pub(super) fn end(&mut self, pod: &Key) {
        let Some(pending) = self.pods.remove(pod) else { return };
        for choice in pending.choices {
            let (Choice::Take(_, name) | Choice::Make(_, Made { name, .. })) = choice;
            self.chosen.remove(&name);
        }
    }

    /// How far each of them is.
    pub(super) fn look(&self, cache: &Cache, now: Time) -> Vec<(Arc<Pod>, String, Progress)> {
        let one = |pending: &Pending| (Arc::clone(&pending.pod), pending.node.clone(), progress(cache, now, pending));
        self.pods.values().map(one).collect()
    }

    /// When the first of them has waited for too long.
    pub(super) fn next(&self) -> Option<Time> {
        self.pods.values().map(|pending| pending.until).min()
    }
}

fn progress(cache: &Cache, now: Time, pending: &Pending) -> Progress {
    if now >= pending.until {
        return Progress::Failed("binding volumes: context deadline exceeded".into());
    }
    if pending.writes > 0 || !pending.made.iter().all(|(key, revision)| cache.holds(key, *revision)) {
        return Progress::Waits;
    }
    let mut all_bound = true;
    for choice in &pending.choices {
        let (Choice::Take(key, _) | Choice::Make(key, _)) = choice;
        let Some(claim) = cache.claim(key) else {
            return Progress::Failed(format!("binding volumes: persistentvolumeclaim \"{}\" not found", key.name));
        };
        if claim.bind_completed {
            let volume = claim.volume.as_deref().and_then(|name| cache.volume(name));
            let usable = |terms: &Vec<Term>| cache.node(&pending.node).is_some_and(|node| matches(terms, node));
            if volume.is_none_or(|volume| !volume.affinity.as_ref().is_none_or(usable)) {
                return Progress::Failed("binding volumes: the volume cannot be used on the chosen node".into());
            }
            continue;
        }
        all_bound = false;
        let under_way = match choice {
            Choice::Take(_, volume) => cache.volume(volume).is_some_and(|volume| volume.is_of(claim)),
            Choice::Make(..) => claim.selected_node.as_deref() == Some(pending.node.as_str()),
        };
        if !under_way {
            let name = &key.name;
            return Progress::Failed(format!("binding volumes: provisioning failed for PVC \"{name}\""));
        }
    }
    if all_bound { Progress::Done } else { Progress::Waits }
}

fn matches(terms: &[Term], node: &crate::views::Node) -> bool {
    terms.iter().any(|term| term.matches_node(node))
}

fn write(cache: &Cache, choice: &Choice, node: &str) -> Option<Write> {
    match choice {
        Choice::Take(claim, volume) => {
            let tree = taken(cache.claim(claim)?, cache.volume(volume)?);
            Some(Write::Update { tree })
        }
        Choice::Make(claim, made) => {
            let claim = cache.claim(claim)?;
            if made.node.is_some() {
                return None;
            }
            let mut tree = claim.object.tree();
            meta::set_annotation(&mut tree, SELECTED_NODE, node);
            Some(Write::Update { tree })
        }
    }
}

/// A volume for each wanting claim on a node, each volume once; `None` if one goes without.
pub(super) fn choose(needs: &VolumeNeeds, node: &crate::views::Node) -> Option<Vec<Choice>> {
    let name = &*node.object.key.name;
    let mut chosen = BTreeSet::new();
    let mut choices = Vec::new();
    for wanting in &needs.wanting {
        let usable = |(volume, terms): &&(String, Option<Vec<Term>>)| {
            !chosen.contains(volume.as_str()) && terms.as_ref().is_none_or(|terms| matches(terms, node))
        };
        let free = wanting.free.iter().find(usable);
        let made = wanting.made.as_ref().filter(|made| made.node.as_deref().is_none_or(|only| only == name));
        match (free, made) {
            (Some((volume, _)), _) => {
                chosen.insert(volume.as_str());
                choices.push(Choice::Take(wanting.claim.clone(), volume.clone()));
            }
            (None, Some(made)) => choices.push(Choice::Make(wanting.claim.clone(), made.clone())),
            (None, None) => return None,
        }
    }
    Some(choices)
}
