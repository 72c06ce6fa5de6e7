//! What a configuration names, and is not on this host.

use crate::check::{Finding, Kind, facts::Interfaces, facts::paths};
use crate::config::Config;

pub(in crate::check) fn names(config: &Config, interfaces: &Interfaces) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(metrics) = config.metrics {
        let (listen, ip) = (metrics.listen, metrics.listen.ip());
        if !ip.is_unspecified() && interfaces.with(ip).is_none() {
            let finding = Finding::problem(
                Kind::MetricsAddress,
                format!("metrics: {ip} is on no interface, so that nobody reaches it"),
                "add it with `ip address add`, or correct it",
            );
            findings.push(finding.at(metrics.line));
        }
        if !ip.to_canonical().is_loopback() {
            let finding = Finding::warning(
                Kind::MetricsExposed,
                format!("metrics: whoever reaches {listen} may read them, without a password"),
                "let a firewall pass only Prometheus, or listen on a loopback address",
            );
            findings.push(finding.at(metrics.line));
        }
    }
    for (bond, path) in paths(config) {
        if let Some(device) = &path.device {
            let finding = match interfaces.is_up(device) {
                Some(true) => None,
                Some(false) => Some(Finding::problem(
                    Kind::DeviceDown,
                    format!("device {device} is down"),
                    format!("`ip link set {device} up`"),
                )),
                None => Some(Finding::problem(
                    Kind::DeviceMissing,
                    format!("device {device} does not exist"),
                    "create it, or name another one",
                )),
            };
            findings.extend(finding.map(|found| found.of_path(bond, path).of_device(device)));
        }
        if interfaces.with(path.local).is_none() {
            let finding = Finding::problem(
                Kind::AddressMissing,
                format!("local {} is on no interface", path.local),
                "add it with `ip address add`, or correct it",
            );
            findings.push(finding.of_path(bond, path));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sample;

    fn kinds(config: &Config, interfaces: &Interfaces) -> Vec<Kind> {
        let findings = names(config, interfaces).into_iter();
        findings.map(|finding| finding.kind).collect()
    }

    #[test]
    fn metrics_for_everybody_are_warned_of() {
        let of = |listen: &str| {
            let text = format!("[metrics]\nlisten = {listen}\n");
            let config = Config::parse(&text, "f").expect("a good file");
            let findings = names(&config, &sample::facts().interfaces);
            assert!(findings.iter().all(|finding| finding.line == Some(2)));
            findings.iter().map(|f| f.kind).collect::<Vec<_>>()
        };
        for loopback in ["9469", "'127.0.0.1:9469'"] {
            assert_eq!(of(loopback), [], "{loopback}");
        }
        assert_eq!(of("'[::ffff:127.0.0.1]:1'"), [Kind::MetricsAddress]);
        for exposed in ["'0.0.0.0:1'", "'[::]:1'", "'10.65.0.2:1'"] {
            assert_eq!(of(exposed), [Kind::MetricsExposed], "{exposed}");
        }
        let both = [Kind::MetricsAddress, Kind::MetricsExposed];
        assert_eq!(of("'192.0.2.77:9469'"), both);
    }

    #[test]
    fn devices_and_addresses_that_are_not_there() {
        let (config, mut interfaces) = (sample::config(), sample::facts().interfaces);
        let wg = |name: &str| name == "wg-a-m1";
        for interface in interfaces.0.iter_mut().filter(|one| wg(&one.name)) {
            interface.up = false;
        }
        assert_eq!(kinds(&config, &interfaces), [Kind::DeviceDown]);
        interfaces.0.retain(|interface| !wg(&interface.name));
        let gone = [Kind::DeviceMissing, Kind::AddressMissing];
        assert_eq!(kinds(&config, &interfaces), gone);
    }
}
