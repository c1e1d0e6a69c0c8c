//! What else meets packets on the interfaces: programs of others, offloads, and interfaces that are not there.

use super::device::{Device, Lower};
use super::finding::{Finding, Level};
use super::offload;
use super::program::Loaded;
use super::scene::{Guarding, Scene};
use crate::kernel::Guard;
use crate::kernel::classifier::{self, Side};

/// Programs and offloads of one interface, as the kernel tells them.
#[derive(Clone, Debug, Default)]
struct Company {
    /// Programs of others that run before traffic control, or in it through tcx.
    xdp: Option<String>,
    tc: Vec<String>,
    merging: Vec<&'static str>,
}

/// Findings on the interfaces of the namespace of the calling thread.
pub(super) fn examine(scene: &Scene, guarding: Guarding<'_>, loaded: &Loaded) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in scene.devices.iter().filter(|device| device.up) {
        let (company, failed) = look(device, guarding, loaded);
        for (check, what, error) in failed {
            findings.push(Finding::failed(check, scene.place(&device.name), what, &error));
        }
        findings.extend(judge(device, &company, guarding.is_at(device), scene));
    }
    findings
}

fn look(
    device: &Device,
    guarding: Guarding<'_>,
    loaded: &Loaded,
) -> (Company, Vec<(&'static str, &'static str, std::io::Error)>) {
    let ours = |id: u32| matches!(guarding, Guarding::Real(guard) if is_ours(guard, id));
    let mut company = Company::default();
    let mut failed = Vec::new();
    company.xdp = device.program.filter(|program| !ours(program.id)).map(|program| loaded.describe(program.id));
    match classifier::tcx(device.index, Side::Ingress).map(Option::unwrap_or_default) {
        Ok(ids) => company.tc.extend(ids.into_iter().filter(|id| !ours(*id)).map(|id| loaded.describe(id))),
        Err(error) => failed.push(("tc_program", "the programs of tcx cannot be listed", error)),
    }
    match classifier::filters(device.index, Side::Ingress) {
        Ok(filters) => {
            let others = filters.into_iter().filter(|filter| filter.id == 0 || !ours(filter.id));
            company.tc.extend(others.map(|filter| match filter.name.as_str() {
                "" => format!("a {} filter", filter.kind),
                name => format!("the {} filter {name}", filter.kind),
            }));
        }
        Err(error) => failed.push(("tc_program", "the filters of traffic control cannot be listed", error)),
    }
    match offload::merging(&device.name) {
        Ok(merging) => company.merging = merging,
        Err(error) => failed.push(("offload", "its offloads cannot be read", error)),
    }
    (company, failed)
}

fn is_ours(guard: &Guard, program: u32) -> bool {
    guard.places.iter().any(|place| place.program == program) || guard.others.contains(&program)
}

fn judge(device: &Device, company: &Company, guarded: bool, scene: &Scene) -> Vec<Finding> {
    let Company { xdp, tc, merging } = company;
    let place = || scene.place(&device.name);
    let mut findings = Vec::new();
    if let Some(program) = xdp {
        let what = format!("the XDP program {program} is attached, which is not this enforcer's");
        let next = "detach it with the tool that attached it; for another enforcer's, ask doctor with its --bpffs-dir";
        findings.push(Finding::new(Level::Warning, "xdp_program", place(), what, next));
    }
    if !tc.is_empty() {
        let what = format!("traffic control runs {}, which may change or redirect packets", tc.join(", "));
        let next =
            format!("see that it brings no other port to a guarded one: tc filter show dev {} ingress", device.name);
        findings.push(Finding::new(Level::Warning, "tc_program", place(), what, next));
    }
    if guarded && !merging.is_empty() {
        let what = format!("{} merges segments before the program sees them", merging.join(" and "));
        let off: Vec<String> = merging.iter().map(|feature| format!("{feature} off")).collect();
        let next = format!("ethtool -K {} {}", device.name, off.join(" "));
        findings.push(Finding::new(Level::Warning, "offload", place(), what, next));
    }
    findings
}

/// Findings on how the guarded devices lie on others, which changes what a guard on them is worth.
pub(super) fn stacked(scene: &Scene, guarding: Guarding<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for bridge in scene.devices.iter().filter(|device| device.up && device.is_sum_of_members()) {
        let members = scene.devices.iter().filter(|member| member.up && member.master == Some(bridge.index));
        let guarded: Vec<&str> =
            members.filter(|member| guarding.is_at(member)).map(|member| member.name.as_str()).collect();
        if !guarded.is_empty() && !guarding.is_at(bridge) {
            let what =
                format!("{} alone is guarded, and a member that {} gets later is not", guarded.join(", "), bridge.name);
            let next = format!("guard {} itself: --interface {}", bridge.name, bridge.name);
            findings.push(Finding::new(Level::Warning, "members", scene.place(&bridge.name), what, next));
        }
    }
    for upper in scene.devices.iter().filter(|device| device.up) {
        let (index, seen) = match upper.lower {
            Lower::All(index) => (index, "all that arrives is judged there"),
            Lower::BehindDriver(index) if scene.device(index).is_some_and(Device::sees_behind_driver) => {
                (index, "all that arrives is judged there")
            }
            Lower::BehindDriver(index) | Lower::FromOutside(index) => {
                (index, "what comes from outside is judged there, what its siblings send is not")
            }
            Lower::None | Lower::Elsewhere => continue,
        };
        let Some(lower) = scene.device(index).filter(|lower| guarding.is_at(lower)) else { continue };
        let what = format!("a {} on {}, which is guarded: {seen}", upper.kind, lower.name);
        let next = format!("nothing, unless {} is to be guarded by itself", upper.name);
        findings.push(Finding::new(Level::Note, "stacked", scene.place(&upper.name), what, next));
    }
    findings
}

/// Findings on interfaces that are to be guarded and are not there, or not up.
pub(super) fn named(scene: &Scene, guarding: Guarding<'_>, wanted: &[String]) -> Vec<Finding> {
    let finding = |name: &str, check, what, next| Finding::new(Level::Warning, check, scene.place(name), what, next);
    wanted
        .iter()
        .filter_map(|name| match scene.devices.iter().find(|device| device.name == *name) {
            None => Some(finding(
                name,
                "missing_interface",
                "there is no such interface",
                "name another with --interface; `ip link` lists them".to_owned(),
            )),
            Some(device) if !guarding.is_at(device) => Some(finding(
                name,
                "not_attached",
                "it is to be guarded, and the program is not attached to it",
                "start `enforcer run` again with it".to_owned(),
            )),
            Some(device) if !device.up => {
                Some(finding(name, "down_interface", "it is down", format!("ip link set {name} up")))
            }
            Some(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::scene::tests::device;

    fn levels(findings: &[Finding]) -> Vec<(Level, &str, &str)> {
        findings.iter().map(|finding| (finding.level, finding.check.as_str(), finding.place.as_str())).collect()
    }

    #[test]
    fn programs_of_others_are_named_wherever_they_are() {
        let company = Company { xdp: Some("other (id 9)".into()), tc: vec!["x (id 3)".into()], merging: vec![] };
        let found = judge(&device(2, "eth0", "", 9), &company, false, &Scene::default());
        assert_eq!(levels(&found), [(Level::Warning, "xdp_program", "eth0"), (Level::Warning, "tc_program", "eth0")]);
        assert!(found[0].what.contains("other (id 9)") && found[1].what.contains("x (id 3)"));
    }

    #[test]
    fn merging_matters_where_a_program_is() {
        let company = Company { merging: vec!["rx-lro", "rx-gro-hw"], ..Company::default() };
        let judge = |guarded| judge(&device(2, "eth0", "", 0), &company, guarded, &Scene::default());
        assert!(judge(false).is_empty());
        let found = judge(true);
        assert_eq!(levels(&found), [(Level::Warning, "offload", "eth0")]);
        assert_eq!(found[0].next, "ethtool -K eth0 rx-lro off rx-gro-hw off");
    }

    #[test]
    fn a_bridge_whose_ports_alone_are_guarded_gets_new_ports_unguarded() {
        let port = Device { master: Some(4), ..device(5, "p0", "veth", 0) };
        let scene = Scene { devices: vec![device(4, "br0", "bridge", 0), port], ..Scene::default() };
        let found = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            stacked(&scene, Guarding::Planned(&names)).len()
        };
        assert_eq!((found(&["p0"]), found(&["br0"]), found(&["br0", "p0"]), found(&[])), (1, 0, 0, 0));
    }

    #[test]
    fn what_lies_on_a_guarded_device_is_told() {
        let upper = Device { lower: Lower::All(2), ..device(7, "eth0.5", "vlan", 0) };
        let scene = Scene { devices: vec![device(2, "eth0", "", 0), upper], ..Scene::default() };
        let found = stacked(&scene, Guarding::Planned(&["eth0".to_owned()]));
        assert_eq!(levels(&found), [(Level::Note, "stacked", "eth0.5")]);
        assert_eq!(stacked(&scene, Guarding::Planned(&["eth0.5".to_owned()])), []);
    }

    #[test]
    fn an_interface_that_is_asked_for_must_be_there_attached_and_up() {
        let mut scene = Scene { devices: vec![device(2, "eth0", "", 0)], ..Scene::default() };
        let wanted = ["eth0".to_owned(), "eth9".to_owned()];
        let found = named(&scene, Guarding::Planned(&wanted), &wanted);
        assert_eq!(levels(&found), [(Level::Warning, "missing_interface", "eth9")]);
        scene.devices[0].up = false;
        assert_eq!(named(&scene, Guarding::Planned(&wanted), &wanted[..1])[0].check, "down_interface");
        assert_eq!(named(&scene, Guarding::Real(&Guard::default()), &wanted[..1])[0].check, "not_attached");
    }
}
