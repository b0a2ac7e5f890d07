//! What is passed over is told.

use super::*;

#[test]
fn what_a_pod_does_not_get_is_refused_aloud_and_once() {
    let with = |fields: Value| {
        let mut container = json!({"name": "c", "image": "i:1"});
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({ "containers": [container] })
    };
    let with_ports = |ports: Value| with(json!({ "ports": ports }));
    for (spec, expected) in [
        (json!({}), None),
        (with_ports(json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 0}])), None),
        (json!({"hostNetwork": false}), None),
        (json!({"hostNetwork": true}), Some("HostNetworkIgnored: hostNetwork is ignored")),
        (
            with_ports(json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 81}])),
            Some("HostPortIgnored: hostPort 8080, 81 is ignored"),
        ),
        (json!({"hostPID": true, "hostIPC": false}), Some("HostPIDIgnored: hostPID is ignored")),
        (json!({"hostIPC": true}), Some("HostIPCIgnored: hostIPC is ignored")),
        (json!({"shareProcessNamespace": true}), Some("ShareProcessNamespaceIgnored: shareProcessNamespace")),
        (json!({"dnsConfig": {"nameservers": ["192.0.2.53"]}}), Some("DNSConfigIgnored: dnsConfig is ignored")),
        (
            with(json!({"securityContext": {"privileged": true}})),
            Some("PrivilegedIgnored: privileged is ignored for c:"),
        ),
        (with(json!({"securityContext": {"privileged": false}, "volumeDevices": []})), None),
        (
            with(json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/d"}]})),
            Some("VolumeDevicesIgnored: volumeDevices are ignored for c:"),
        ),
        (
            with(json!({"lifecycle": {"stopSignal": "SIGUSR1"}})),
            Some("StopSignalIgnored: stopSignal is ignored for c:"),
        ),
        // These hold: whoever uses more is evicted.
        (with(json!({"resources": {"limits": {"ephemeral-storage": "1Gi"}}})), None),
        (json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]}), None),
    ] {
        let mut sim = Sim::new(pod(spec));
        sim.apply();
        sim.pass(60_000);
        // An agent that starts again says nothing new.
        sim.agent = Agent::new(Config { host_ip: "192.0.2.1".parse().unwrap() });
        sim.apply();
        sim.pass(60_000);
        let said: Vec<_> = sim.events.iter().filter(|e| e.contains("ignored")).collect();
        assert_eq!(said.len(), usize::from(expected.is_some()), "{said:?}");
        assert!(said.iter().zip(expected).all(|(said, start)| said.starts_with(start)), "{said:?}");
    }
}
