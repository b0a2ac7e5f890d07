//! Deployments.

use crate::world::{World, condition, deployment, numbers, reason, serves};
use dhow_api::{Tree, meta};
use dhow_state::State;
use serde_json::json;

pub(crate) fn rolling(surge: Tree, unavailable: Tree) -> Tree {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

pub(crate) fn set_image(world: &mut World, image: &str) {
    world.edit("deployments.apps", "web", |tree| {
        tree["spec"]["template"]["spec"]["containers"][0]["image"] = image.into()
    });
}

fn images(world: &World) -> Vec<String> {
    let mut images: Vec<String> =
        world.pods().iter().map(|pod| meta::text(&pod["spec"]["containers"][0], "image").to_owned()).collect();
    images.sort();
    images
}

fn web(world: &World) -> Tree {
    world.get("deployments.apps", "default", "web").unwrap()
}

#[test]
fn a_deployment_gets_its_pods_and_says_so() {
    for seed in 0..10 {
        let mut world = World::new(seed, &["n1", "n2"]);
        world.create(deployment("web", 3, "web:1", json!({})));
        world.settle();
        let deployment = web(&world);
        assert_eq!(numbers(&deployment), [3, 3, 3, 3], "seed {seed}");
        assert_eq!(meta::int(&deployment, "status.observedGeneration"), Some(meta::generation(&deployment)));
        assert_eq!(reason(&deployment, "Available"), "MinimumReplicasAvailable");
        assert_eq!(reason(&deployment, "Progressing"), "NewReplicaSetAvailable");
        assert_eq!(meta::annotation(&deployment, "deployment.kubernetes.io/revision"), Some("1"));
        let set = &world.list("replicasets.apps")[0];
        assert_eq!(meta::annotation(set, "deployment.kubernetes.io/revision"), Some("1"));
        let hash = meta::label(set, "pod-template-hash").unwrap();
        assert_eq!(meta::name(set), format!("web-{hash}"));
        assert!(world.pods().iter().all(|pod| meta::label(pod, "pod-template-hash") == Some(hash)));
        let told = world.events("ScalingReplicaSet");
        assert_eq!(told, [format!("Scaled up replica set web-{hash} from 0 to 3")]);
        assert_eq!(world.events("SuccessfulCreate").len(), 3);
        let pod = &world.pods()[0];
        let message =
            format!("Successfully assigned default/{} to {}", meta::name(pod), meta::text(pod, "spec.nodeName"));
        assert!(world.events("Scheduled").contains(&message));
    }
}

/// Counts what an update of four replicas may never pass: five pods that are meant to live, and three that serve once
/// three have served.
pub(crate) fn within_limits(state: &State) {
    let pods: Vec<Tree> =
        state.list("pods", Some("default")).filter(|pod| !pod.index.deleting).map(|object| object.tree()).collect();
    let alive = pods.len();
    let serving = pods.iter().filter(|pod| serves(pod)).count();
    assert!(alive <= 5, "{alive} pods, at most 5 are allowed");
    let updating =
        state.list("deployments.apps", None).any(|object| meta::annotation(&object.tree(), "test/updating").is_some());
    assert!(!updating || serving >= 3, "{serving} pods serve, at least 3 must");
}

#[test]
fn an_update_keeps_within_surge_and_availability() {
    for seed in 0..25 {
        let mut world = World::new(seed, &["n1", "n2"]);
        world.invariant = Some(within_limits);
        world.create(deployment("web", 4, "web:1", rolling(json!("25%"), json!(1))));
        world.settle();
        world.edit("deployments.apps", "web", |tree| meta::set_annotation(tree, "test/updating", "yes"));
        for image in ["web:2", "web:3"] {
            set_image(&mut world, image);
            world.stumble(400);
            world.settle();
        }
        assert_eq!(images(&world), ["web:3"; 4], "seed {seed}");
        assert_eq!(numbers(&web(&world)), [4, 4, 4, 4]);
        assert_eq!(meta::annotation(&web(&world), "deployment.kubernetes.io/revision"), Some("3"));
    }
}

#[test]
#[should_panic(expected = "at least 3 must")]
fn the_check_of_availability_is_awake() {
    let mut world = World::new(1, &["n1"]);
    world.invariant = Some(within_limits);
    world.create(deployment("web", 4, "web:1", rolling(json!(1), json!(2))));
    world.settle();
    world.edit("deployments.apps", "web", |tree| meta::set_annotation(tree, "test/updating", "yes"));
    set_image(&mut world, "web:2");
    world.settle();
}

#[test]
#[should_panic(expected = "at most 5 are allowed")]
fn the_check_of_surge_is_awake() {
    let mut world = World::new(1, &["n1"]);
    world.invariant = Some(within_limits);
    world.create(deployment("web", 4, "web:1", rolling(json!(2), json!(0))));
    world.settle();
    set_image(&mut world, "web:2");
    world.settle();
}

#[test]
fn an_update_that_never_gets_ready_stops_and_is_called_stuck() {
    let mut world = World::new(3, &["n1"]);
    world.invariant = Some(within_limits);
    let mut tree = deployment("web", 4, "web:1", rolling(json!(1), json!(1)));
    tree["spec"]["progressDeadlineSeconds"] = 30.into();
    world.create(tree);
    world.settle();
    world.edit("deployments.apps", "web", |tree| meta::set_annotation(tree, "test/updating", "yes"));
    world.broken_images.insert("web:bad".into());
    set_image(&mut world, "web:bad");
    world.pass(60_000);
    let stuck = web(&world);
    assert_eq!(reason(&stuck, "Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(condition(&stuck, "Available"), "True");
    assert_eq!(numbers(&stuck), [5, 2, 3, 3]);
    // Going back to the first template is a rollout to the first replica set.
    set_image(&mut world, "web:1");
    world.settle();
    let back = web(&world);
    assert_eq!(numbers(&back), [4, 4, 4, 4]);
    assert_eq!(reason(&back, "Progressing"), "NewReplicaSetAvailable");
    assert_eq!(meta::annotation(&back, "deployment.kubernetes.io/revision"), Some("3"));
    let sets = world.list("replicasets.apps");
    let first = sets.iter().find(|set| meta::int(set, "spec.replicas") == Some(4)).unwrap();
    assert_eq!(meta::annotation(first, "deployment.kubernetes.io/revision"), Some("3"));
    assert_eq!(meta::annotation(first, "deployment.kubernetes.io/revision-history"), Some("1"));
    assert_eq!(sets.len(), 2);
}

#[test]
fn recreate_never_has_two_templates_at_once() {
    fn one_template(state: &State) {
        let pods = state.list("pods", Some("default"));
        let mut hashes: Vec<&str> = pods.filter_map(|pod| pod.index.label("pod-template-hash")).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert!(hashes.len() <= 1, "pods of two templates at once");
    }
    for seed in 0..10 {
        let mut world = World::new(seed, &["n1"]);
        world.invariant = Some(one_template);
        world.create(deployment("web", 3, "web:1", json!({"type": "Recreate"})));
        world.settle();
        set_image(&mut world, "web:2");
        world.stumble(100);
        world.settle();
        assert_eq!(images(&world), ["web:2"; 3]);
        assert_eq!(numbers(&web(&world)), [3, 3, 3, 3]);
    }
}

#[test]
fn a_paused_deployment_scales_and_does_not_roll() {
    let mut world = World::new(5, &["n1"]);
    world.create(deployment("web", 3, "web:1", json!({})));
    world.settle();
    world.edit("deployments.apps", "web", |tree| tree["spec"]["paused"] = true.into());
    set_image(&mut world, "web:2");
    world.settle();
    assert_eq!(images(&world), ["web:1"; 3]);
    assert_eq!(reason(&web(&world), "Progressing"), "DeploymentPaused");
    world.edit("deployments.apps", "web", |tree| tree["spec"]["replicas"] = 5.into());
    world.settle();
    assert_eq!(images(&world), ["web:1"; 5]);
    world.edit("deployments.apps", "web", |tree| tree["spec"]["paused"] = false.into());
    world.settle();
    assert_eq!(images(&world), ["web:2"; 5]);
    assert_eq!(reason(&web(&world), "Progressing"), "NewReplicaSetAvailable");
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_the_proportion() {
    let mut world = World::new(6, &["n1"]);
    world.create(deployment("web", 10, "web:1", rolling(json!(3), json!(2))));
    world.settle();
    world.broken_images.insert("web:bad".into());
    set_image(&mut world, "web:bad");
    world.settle();
    let sizes = |world: &World| -> Vec<i64> {
        let mut sets = world.list("replicasets.apps");
        sets.sort_by_key(|set| meta::annotation(set, "deployment.kubernetes.io/revision").unwrap().to_owned());
        sets.iter().map(|set| meta::int(set, "spec.replicas").unwrap()).collect()
    };
    assert_eq!(sizes(&world), [8, 5]);
    world.edit("deployments.apps", "web", |tree| tree["spec"]["replicas"] = 15.into());
    world.settle();
    // Thirteen pods become eighteen, shared as 8 to 5 were.
    assert_eq!(sizes(&world), [11, 7]);
}

#[test]
fn scaling_a_settled_deployment_changes_one_set() {
    let mut world = World::new(8, &["n1"]);
    world.create(deployment("web", 2, "web:1", json!({})));
    world.settle();
    for replicas in [7, 0, 3] {
        world.edit("deployments.apps", "web", |tree| tree["spec"]["replicas"] = replicas.into());
        world.settle();
        assert_eq!(world.pods().len() as i64, replicas);
        assert_eq!(numbers(&web(&world)), [replicas; 4]);
    }
    assert_eq!(world.list("replicasets.apps").len(), 1);
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = World::new(9, &["n1"]);
    let mut tree = deployment("web", 1, "web:1", json!({}));
    tree["spec"]["revisionHistoryLimit"] = 2.into();
    world.create(tree);
    for image in ["web:2", "web:3", "web:4", "web:5"] {
        world.settle();
        set_image(&mut world, image);
    }
    world.settle();
    let mut revisions: Vec<String> = world
        .list("replicasets.apps")
        .iter()
        .map(|set| meta::annotation(set, "deployment.kubernetes.io/revision").unwrap().to_owned())
        .collect();
    revisions.sort();
    assert_eq!(revisions, ["3", "4", "5"]);
}

#[test]
fn available_means_ready_for_long_enough() {
    let mut world = World::new(10, &["n1"]);
    let mut tree = deployment("web", 2, "web:1", json!({}));
    tree["spec"]["minReadySeconds"] = 30.into();
    world.create(tree);
    world.settle();
    assert_eq!(numbers(&web(&world)), [2, 2, 2, 0]);
    assert_eq!(reason(&web(&world), "Available"), "MinimumReplicasUnavailable");
    world.pass(40_000);
    assert_eq!(numbers(&web(&world)), [2, 2, 2, 2]);
}

#[test]
fn a_name_that_is_taken_counts_as_a_collision() {
    let mut world = World::new(11, &["n1"]);
    world.create(deployment("web", 1, "web:1", json!({})));
    world.settle();
    let name = meta::name(&world.list("replicasets.apps")[0]).to_owned();
    world.delete("deployments.apps", "default", "web", dhow_controllers::Propagation::Background);
    world.settle();
    let mut squatter = crate::world::replica_set("other", 0, "web:1");
    meta::set_name(&mut squatter, &name);
    world.create(squatter);
    world.create(deployment("web", 1, "web:1", json!({})));
    world.settle();
    assert_eq!(meta::int(&web(&world), "status.collisionCount"), Some(1));
    assert_eq!(numbers(&web(&world)), [1, 1, 1, 1]);
}

#[test]
fn a_settled_deployment_writes_nothing_more() {
    let mut world = World::new(12, &["n1"]);
    world.create(deployment("web", 3, "web:1", json!({})));
    world.settle();
    world.forget_counts();
    world.pass(30_000);
    assert_eq!(world.counts, Default::default());
}
